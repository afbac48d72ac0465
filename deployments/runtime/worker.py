"""Threads of a replica for blocking work: inference never runs on the event loop.

Interactive calls, which a client waits for, go before batch calls, which belong to jobs. A running
batch call yields its slot at a cancellation point while interactive calls wait.
"""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ray.serve import metrics

from speech.log_context import job_id

Result = TypeVar("Result")


class _Slots:
    """The slots that calls run in.

    The demand counts the interactive calls that have a slot or wait for one.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._demand = 0
        self._interactive = 0
        self._batch = 0
        self._changed = threading.Condition()

    def add_demand(self, calls: int) -> None:
        """So many more interactive calls need a slot; fewer if negative."""
        with self._changed:
            self._demand += calls
            self._changed.notify_all()

    def notify_cancelled(self) -> None:
        """Wake the calls that wait here, of which one is cancelled."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def interactive(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(
                lambda: cancelled() or self._interactive + self._batch < self._number
            )
            self._interactive += 1
        try:
            yield
        finally:
            with self._changed:
                self._interactive -= 1
                self._changed.notify_all()

    @contextmanager
    def batch(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        with self._changed:
            self._wait_for_surplus(cancelled)
            self._batch += 1
        try:
            yield
        finally:
            with self._changed:
                self._batch -= 1
                self._changed.notify_all()

    def yield_batch_slot(self, cancelled: Callable[[], bool]) -> None:
        """Lend the slot of a batch call to interactive calls while they need more than are free."""
        with self._changed:
            if self._demand + self._batch <= self._number:
                return
            self._batch -= 1
            self._changed.notify_all()
            self._wait_for_surplus(cancelled)
            self._batch += 1

    def _wait_for_surplus(self, cancelled: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: cancelled() or self._demand + self._batch < self._number)


class Call:
    """One call in its thread. Its work is done inside of :meth:`slot`."""

    def __init__(self, worker: "Worker", job: str | None) -> None:
        self.job = job
        self.seconds_done = 0.0
        self._worker = worker
        self._submitted = time.perf_counter()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody waits for the result any more."""
        self._cancelled.set()
        self._worker.slots.notify_cancelled()

    def is_cancelled(self) -> bool:
        """For work that holds a lock and must not be held up, unlike :meth:`checkpoint`."""
        return self._cancelled.is_set()

    def checkpoint(self) -> bool:
        """A cancellation point: whether the call is cancelled.

        A batch call yields to interactive calls here, for as long as they need its slot.
        """
        if self.job is not None:
            self._worker.slots.yield_batch_slot(self.is_cancelled)
        return self.is_cancelled()

    def report(self, seconds_done: float) -> None:
        """Record how many seconds of the audio are done, for the progress of a job."""
        self.seconds_done = max(self.seconds_done, seconds_done)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for a slot and hold it."""
        slots = self._worker.slots
        if self.job is not None:
            with slots.batch(self.is_cancelled):
                yield
            return
        with slots.interactive(self.is_cancelled):
            self._worker.observe_wait(time.perf_counter() - self._submitted)
            yield

    @contextmanager
    def without_demand(self) -> Iterator[None]:
        """Let batch calls run while this call waits for something that one of them may hold."""
        calls = 0 if self.job is not None else 1
        self._worker.slots.add_demand(-calls)
        try:
            yield
        finally:
            self._worker.slots.add_demand(calls)


class Worker:
    """Runs at most ``concurrency`` calls at once.

    What waits here is bounded by Serve's ``max_ongoing_requests``, see
    :func:`deployments.runtime.options.serve_options`. A cancelled call leaves the queue at once, or
    stops at its next cancellation point.
    """

    def __init__(self, concurrency: int) -> None:
        self.slots = _Slots(concurrency)
        self._batch_calls: set[Call] = set()
        self._interactive_threads = ThreadPoolExecutor(concurrency, thread_name_prefix="engine")
        self._batch_threads = ThreadPoolExecutor(concurrency, thread_name_prefix="job")
        self._wait_seconds = metrics.Histogram(
            "speechgraph_queue_wait_seconds",
            "Seconds that a call waited in its replica for a free thread.",
            boundaries=[0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60],
        )

    @property
    def progress(self) -> Mapping[str, float]:
        """Seconds of audio done, by job, of the batch calls that somebody waits for.

        A job with several calls here has the progress of the furthest. For any thread.
        """
        done: dict[str, float] = {}
        for call in tuple(self._batch_calls):
            if call.job is not None and call.seconds_done:
                done[call.job] = max(done.get(call.job, 0.0), call.seconds_done)
        return done

    def observe_wait(self, seconds: float) -> None:
        """Record how long an interactive call waited for its slot."""
        self._wait_seconds.observe(seconds)

    async def run(self, work: Callable[[Call], Result], job: str | None = None) -> Result:
        """Await ``work(call)`` in a thread; with the id of a ``job`` it is a batch call."""
        call = Call(self, job)
        context = contextvars.copy_context()  # with the ids for log records
        context.run(job_id.set, job)
        if job is not None:
            return await self._run_batch(call, lambda call: context.run(work, call))
        self.slots.add_demand(1)
        future = self._interactive_threads.submit(context.run, work, call)
        future.add_done_callback(lambda _: self.slots.add_demand(-1))
        try:
            return await asyncio.wrap_future(future)
        finally:
            call.cancel()

    async def _run_batch(self, call: Call, work: Callable[[Call], Result]) -> Result:
        self._batch_calls.add(call)
        try:
            return await asyncio.wrap_future(self._batch_threads.submit(work, call))
        finally:
            call.cancel()
            self._batch_calls.discard(call)
