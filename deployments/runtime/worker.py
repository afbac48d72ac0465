"""Threads of a replica for blocking work: inference never runs on the event loop.

Calls of clients who wait go before calls of jobs. A job's call that runs stands aside between two
pieces of its work, where the engine asks whether it is cancelled, for as long as there are others.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ray.serve import metrics

Result = TypeVar("Result")


class _Slots:
    """What calls run in. Those that a client waits for are counted from when they are wanted."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._wanted = 0
        self._online = 0
        self._jobs = 0
        self._changed = threading.Condition()

    def want(self, calls: int) -> None:
        """So many more online calls want a slot, or have one."""
        with self._changed:
            self._wanted += calls
            self._changed.notify_all()

    @contextmanager
    def online(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: cancelled() or self._online + self._jobs < self._number)
            self._online += 1
        try:
            yield
        finally:
            with self._changed:
                self._online -= 1
                self._changed.notify_all()

    @contextmanager
    def job(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        with self._changed:
            self._wait_behind(cancelled)
            self._jobs += 1
        try:
            yield
        finally:
            with self._changed:
                self._jobs -= 1
                self._changed.notify_all()

    def give_way(self, cancelled: Callable[[], bool]) -> None:
        """Lend the slot of a job to online calls while those want more than are free."""
        with self._changed:
            if self._wanted + self._jobs <= self._number:
                return
            self._jobs -= 1
            self._changed.notify_all()
            self._wait_behind(cancelled)
            self._jobs += 1

    def _wait_behind(self, cancelled: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: cancelled() or self._wanted + self._jobs < self._number)


class Call:
    """One call in its thread. Its work is done inside of :meth:`slot`."""

    def __init__(self, worker: "Worker", job: str | None) -> None:
        self._worker = worker
        self._job = job
        self._submitted = time.perf_counter()
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Nobody waits for the result any more."""
        self._given_up.set()

    def is_given_up(self) -> bool:
        """The same as :meth:`cancelled`, for work that must not stop while it holds a lock."""
        return self._given_up.is_set()

    def cancelled(self) -> bool:
        """What an engine asks between two pieces of work; a job gives way to others here."""
        if self._job is not None:
            self._worker.slots.give_way(self.is_given_up)
        return self.is_given_up()

    def report(self, seconds_done: float) -> None:
        """Say how many seconds of the audio are done, for whoever follows the job."""
        if self._job is not None:
            known = self._worker.progress.get(self._job, 0.0)
            self._worker.progress[self._job] = max(known, seconds_done)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for a slot and hold it."""
        slots = self._worker.slots
        if self._job is not None:
            with slots.job(self.is_given_up):
                yield
            return
        with slots.online(self.is_given_up):
            self._worker.observe_wait(time.perf_counter() - self._submitted)
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let jobs go on while this call waits for something that a job may hold."""
        calls = 0 if self._job is not None else 1
        self._worker.slots.want(-calls)
        try:
            yield
        finally:
            self._worker.slots.want(calls)


class Worker:
    """Runs at most ``concurrency`` calls at once.

    What waits here is bounded by Serve's ``max_ongoing_requests``, see
    :func:`deployments.runtime.options.serve_options`. A cancelled call leaves the queue at once, or
    stops when it next asks ``cancelled()``.
    """

    def __init__(self, concurrency: int) -> None:
        self.slots = _Slots(concurrency)
        self.progress: dict[str, float] = {}
        """Seconds of audio done by the calls of jobs that run here."""
        self._online = ThreadPoolExecutor(concurrency, thread_name_prefix="engine")
        self._jobs = ThreadPoolExecutor(concurrency, thread_name_prefix="job")
        self._wait_seconds = metrics.Histogram(
            "speechgraph_queue_wait_seconds",
            "Seconds that a call waited in its replica for a free thread.",
            boundaries=[0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60],
        )

    def observe_wait(self, seconds: float) -> None:
        """Note how long an online call waited for its slot."""
        self._wait_seconds.observe(seconds)

    async def run(self, work: Callable[[Call], Result], job: str | None = None) -> Result:
        """Await ``work(call)`` in a thread; ``job`` is the id of the job that it is for."""
        call = Call(self, job)
        online = 1 if job is None else 0
        self.slots.want(online)
        future = (self._online if job is None else self._jobs).submit(work, call)
        future.add_done_callback(lambda _: self.slots.want(-online))
        try:
            return await asyncio.wrap_future(future)
        finally:
            call.give_up()
            self.slots.want(0)
            if job is not None:
                self.progress.pop(job, None)
