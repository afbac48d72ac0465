"""Threads of a replica for blocking work: inference never runs on the event loop."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ray.serve import metrics

Result = TypeVar("Result")
Cancelled = Callable[[], bool]


class Worker:
    """Runs at most ``concurrency`` jobs at once.

    What waits here is bounded by Serve's ``max_ongoing_requests``, see
    :func:`deployments.options.serve_options`. A cancelled job leaves the queue at once, or stops
    when it next asks ``cancelled()``.
    """

    def __init__(self, concurrency: int) -> None:
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="engine")
        self._wait_seconds = metrics.Histogram(
            "speechgraph_queue_wait_seconds",
            "Seconds that a call waited in its replica for a free thread.",
            boundaries=[0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60],
        )

    async def run(self, job: Callable[[Cancelled], Result]) -> Result:
        """Await ``job(cancelled)`` in a thread."""
        cancelled = threading.Event()
        future = self._pool.submit(self._timed, job, cancelled.is_set, time.perf_counter())
        try:
            return await asyncio.wrap_future(future)
        finally:
            cancelled.set()

    def _timed(
        self, job: Callable[[Cancelled], Result], cancelled: Cancelled, submitted: float
    ) -> Result:
        self._wait_seconds.observe(time.perf_counter() - submitted)
        return job(cancelled)
