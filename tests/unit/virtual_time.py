"""An event loop whose clock moves only when there is nothing to do, so that waits take no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everything waits, and no timer runs")
        self.now_s += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; it may use timers, but no threads and no sockets."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)
