"""Micro-batches: one thread works, and what comes meanwhile waits and goes into it together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from speech.errors import Overloaded

T = TypeVar("T")
R = TypeVar("R")

LONGEST_TICKS = 4
"""With live recognition's tick of 40 ms a busy thread works every 160 ms: about a step of its
models, in which every stream gets ready to join the batch."""


class MicroBatcher(Generic[T, R]):
    """Awaits ``run`` for single items, and calls it with many.

    ``run`` maps items to results of the same number and order, in a thread that nothing else uses;
    an exception among the results fails its item alone, one that is raised fails the batch. It is
    called with all that waits, at most ``max_batch`` items, as soon as it has returned from the
    batch before and ``tick_s`` seconds have gone by since that began, or twice as long as it took,
    up to :data:`LONGEST_TICKS` ticks: a longer tick makes batches larger, which cost less, and
    answers later, so that it grows with the load. For one event loop at a time.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        max_batch: int,
        tick_s: float = 0.0,
        max_waiting: int = 1024,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._tick_s = tick_s
        self._max_waiting = max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._waiting: dict[asyncio.Future[R], T] = {}  # in the order of their coming
        self._worker: asyncio.Task[None] | None = None
        self._next = float("-inf")

    async def submit(self, item: T) -> R:
        """The result of one item; cancelled before it ran, it never runs.

        Raises Overloaded when ``max_waiting`` items wait already, Cancelled after :meth:`close`,
        and what ``run`` says of the item.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} pieces of work wait already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting[future] = item
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                # Even without a tick to wait for: tasks that are ready now get to submit theirs.
                await asyncio.sleep(self._next - loop.time())
                batch = dict(islice(self._waiting.items(), self._max_batch))
                for future in batch:
                    del self._waiting[future]
                # A future is cancelled before its awaiting task hears of it.
                batch = {future: item for future, item in batch.items() if not future.done()}
                if batch:
                    began = loop.time()
                    await self._finish(batch)
                    spent_s = loop.time() - began
                    ticks_s = LONGEST_TICKS * self._tick_s
                    self._next = began + min(max(self._tick_s, 2 * spent_s), ticks_s)
        finally:
            self._worker = None

    async def _finish(self, batch: dict[asyncio.Future[R], T]) -> None:
        loop = asyncio.get_running_loop()
        outcomes: Sequence[R | Exception]
        try:
            outcomes = await loop.run_in_executor(self._thread, self._run, list(batch.values()))
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
