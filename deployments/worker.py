"""Threads of a replica behind a bounded queue: inference never runs on the event loop."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ray.serve import metrics

from speech.errors import Overloaded

Result = TypeVar("Result")
Cancelled = Callable[[], bool]


class Worker:
    """Runs blocking work: at most ``concurrency`` jobs at once, ``max_queue`` more wait.

    One more is refused with Overloaded. A cancelled job leaves the queue at once, or stops when it
    next asks ``cancelled()``; until then it keeps its place, so the bounds hold.
    """

    def __init__(self, concurrency: int, max_queue: int) -> None:
        self._limit = concurrency + max_queue
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="engine")
        self._pending = 0
        self._wait_seconds = metrics.Histogram(
            "speechgraph_queue_wait_seconds",
            "Seconds that a call waited in its replica for a free thread.",
            boundaries=[0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60],
        )

    async def run(self, job: Callable[[Cancelled], Result]) -> Result:
        """Await ``job(cancelled)`` in a thread."""
        if self._pending >= self._limit:
            raise Overloaded(f"{self._pending} requests already run or wait in this replica")
        self._pending += 1
        cancelled = threading.Event()
        future = self._pool.submit(self._timed, job, cancelled.is_set, time.perf_counter())
        future.add_done_callback(partial(self._release, asyncio.get_running_loop()))
        try:
            return await asyncio.wrap_future(future)
        finally:
            cancelled.set()

    def _timed(
        self, job: Callable[[Cancelled], Result], cancelled: Cancelled, submitted: float
    ) -> Result:
        self._wait_seconds.observe(time.perf_counter() - submitted)
        return job(cancelled)

    def _release(self, loop: asyncio.AbstractEventLoop, _: "Future[Any]") -> None:
        loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._pending -= 1
