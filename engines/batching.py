"""Micro-batching: items that arrive while a batch runs form the next batch."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from speech.errors import Overloaded

T = TypeVar("T")
R = TypeVar("R")


class MicroBatcher(Generic[T, R]):
    """Callers submit single items; ``run`` is called with batches.

    ``run`` maps items to results of the same number and order, in one of ``threads`` threads of its
    own; an exception among the results fails its item alone, a raised one fails the batch. A batch
    takes all waiting items, at most ``max_batch``. It begins as soon as a thread is free, and not
    before ``tick_s`` seconds after the one before began; at a tick, free threads may begin a batch
    each. So batches grow with the load, by what arrives while all threads are busy. For one event
    loop at a time.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        max_batch: int,
        tick_s: float = 0.0,
        max_waiting: int = 1024,
        threads: int = 1,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._tick_s = tick_s
        self._max_waiting = max_waiting
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        self._waiting: dict[asyncio.Future[R], T] = {}  # in order of arrival
        self._workers: set[asyncio.Task[None]] = set()  # at most one for each thread
        self._next = float("-inf")

    async def submit(self, item: T, *, at_once: bool = False) -> R:
        """The result of one item; an item that is cancelled while it waits never runs.

        ``at_once`` begins the next batch without waiting for the tick. Raises Overloaded when
        ``max_waiting`` items are waiting, and the exception of ``run``.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} items are waiting already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting[future] = item
        if at_once:
            self._next = float("-inf")
        if len(self._workers) < self._threads:
            worker = loop.create_task(self._work())
            self._workers.add(worker)
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                # Lets tasks that are ready submit their items first, also those that have their
                # results from the batch before.
                await asyncio.sleep(0)
                if not self._waiting:
                    return
                await asyncio.sleep(self._next - loop.time())
                batch = dict(islice(self._waiting.items(), self._max_batch))
                for future in batch:
                    del self._waiting[future]
                # A cancelled future leaves the queue only when its awaiting task runs.
                batch = {future: item for future, item in batch.items() if not future.done()}
                if batch:
                    self._next = loop.time() + self._tick_s
                    await self._finish(batch)
        finally:
            self._workers.discard(asyncio.current_task())

    async def _finish(self, batch: dict[asyncio.Future[R], T]) -> None:
        loop = asyncio.get_running_loop()
        outcomes: Sequence[R | Exception]
        try:
            outcomes = await loop.run_in_executor(self._pool, self._run, list(batch.values()))
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} results for {len(batch)} items")
        except Exception as error:
            outcomes = [error] * len(batch)
        for future, outcome in zip(batch, outcomes, strict=True):
            if future.done():  # cancelled meanwhile
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
