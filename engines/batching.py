"""Micro-batching: items that arrive while a batch runs form the next batch."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from speech.errors import Overloaded

T = TypeVar("T")
R = TypeVar("R")

LONGEST_TICKS = 4
"""With the tick of 40 ms of live recognition, batches under load begin every 160 ms: about one step
of its models, within which every stream has audio for the next batch."""


class MicroBatcher(Generic[T, R]):
    """Callers submit single items; ``run`` is called with batches.

    ``run`` maps items to results of the same number and order, in a thread of its own; an exception
    among the results fails its item alone, a raised one fails the batch. A batch takes all waiting
    items, at most ``max_batch``. It begins when the one before has returned, and at least
    ``tick_s`` seconds, or twice the duration of the one before up to :data:`LONGEST_TICKS` ticks,
    after that began: longer ticks make larger batches, which cost less per item and delay results,
    so the tick grows with the load. For one event loop at a time.
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
        self._waiting: dict[asyncio.Future[R], T] = {}  # in order of arrival
        self._worker: asyncio.Task[None] | None = None
        self._next = float("-inf")

    async def submit(self, item: T) -> R:
        """The result of one item; an item that is cancelled while it waits never runs.

        Raises Overloaded when ``max_waiting`` items are waiting, and the exception of ``run``.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} items are waiting already")
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
                # Also without a tick: lets tasks that are ready submit their items first.
                await asyncio.sleep(self._next - loop.time())
                batch = dict(islice(self._waiting.items(), self._max_batch))
                for future in batch:
                    del self._waiting[future]
                # A cancelled future leaves the queue only when its awaiting task runs.
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
