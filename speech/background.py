"""Background tasks whose failure is logged, and that run again after it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(f"speechgraph.{__name__}")

RESTART_S = 1.0
"""Pause before work that failed runs again."""

_alive: set[asyncio.Task[None]] = set()
"""The event loop itself holds tasks weakly."""


def in_background(
    work: Callable[[], Coroutine[Any, Any, None]], name: str, *, restart: bool
) -> asyncio.Task[None]:
    """Run ``work()`` in a task that raises nothing: a failure is logged with its traceback.

    With ``restart`` it then runs again after RESTART_S, until it returns.
    """

    async def supervised() -> None:
        while True:
            try:
                await work()
            except Exception:
                logger.exception("%s failed%s", name, ", it runs again" if restart else "")
                if not restart:
                    return
            else:
                return
            await asyncio.sleep(RESTART_S)

    task = asyncio.create_task(supervised(), name=name)
    _alive.add(task)
    task.add_done_callback(_alive.discard)
    return task
