"""Micro-batches: who goes together, who waits, and what one failure does to the others."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.batching import MicroBatcher
from speech.errors import EngineFailed, Overloaded

WAIT_S = 30.0


class Mill:
    """Doubles numbers, remembers the batches, and stands still until its gate is open."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.started.set()
        self.begun.release()
        assert self.gate.wait(WAIT_S)
        return [EngineFailed(f"{i} is negative") if i < 0 else 2 * i for i in items]


@pytest.fixture
async def busy() -> AsyncIterator[Mill]:
    """A mill that stands still, and is let go whatever the test does."""
    mill = Mill(is_open=False)
    yield mill
    mill.gate.set()


async def under_way(batcher: MicroBatcher[int, int], mill: Mill) -> asyncio.Task[int]:
    """Submit 1 and wait until the thread is busy with it."""
    first = asyncio.create_task(batcher.submit(1))
    assert await asyncio.to_thread(mill.started.wait, WAIT_S)
    return first


async def waiting(batcher: MicroBatcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Submit items and let them get in line."""
    tasks = [asyncio.create_task(batcher.submit(i)) for i in items]
    await asyncio.sleep(0)
    return tasks


async def test_what_comes_at_once_goes_together_and_each_gets_its_own_result() -> None:
    mill = Mill()
    batcher = MicroBatcher(mill, max_batch=10)
    assert await asyncio.gather(*map(batcher.submit, range(5))) == [0, 2, 4, 6, 8]
    assert mill.batches == [[0, 1, 2, 3, 4]]


async def test_what_waits_while_the_thread_is_busy_goes_together(busy: Mill) -> None:
    batcher = MicroBatcher(busy, max_batch=3)
    first = await under_way(batcher, busy)
    others = await waiting(batcher, 2, 3, 4, 5)
    busy.gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10]
    assert busy.batches == [[1], [2, 3, 4], [5]]


async def test_a_tick_gathers_though_the_thread_is_free() -> None:
    mill = Mill()
    batcher = MicroBatcher(mill, max_batch=10, tick_s=0.5)
    await batcher.submit(1)
    early = await waiting(batcher, 2)
    await asyncio.sleep(0.01)
    assert await batcher.submit(3) == 6
    assert await early[0] == 4
    assert mill.batches == [[1], [2, 3]]


async def test_a_tick_that_is_over_delays_nothing() -> None:
    mill = Mill()

    def grind(items: Sequence[int]) -> list[int | Exception]:
        time.sleep(0.3)
        return mill(items)

    batcher = MicroBatcher(grind, max_batch=10, tick_s=0.2)
    await batcher.submit(1)
    early = await waiting(batcher, 2)
    await asyncio.sleep(0.1)
    assert await batcher.submit(3) == 6
    assert await early[0] == 4
    assert mill.batches == [[1], [2], [3]]


async def test_an_item_that_is_submitted_at_once_waits_for_no_tick() -> None:
    mill = Mill()
    batcher = MicroBatcher(mill, max_batch=10, tick_s=WAIT_S)

    async def three_times() -> None:
        for number in range(3):
            await batcher.submit(number, at_once=number > 0)

    together = asyncio.gather(three_times(), batcher.submit(5))
    await asyncio.wait_for(together, WAIT_S / 2)
    assert mill.batches == [[0, 5], [1], [2]]


async def test_what_waits_while_one_thread_is_busy_begins_in_another(busy: Mill) -> None:
    batcher = MicroBatcher(busy, max_batch=2, threads=2)
    first = await under_way(batcher, busy)
    others = await waiting(batcher, 2, 3, 4, 5)
    for _ in range(2):
        assert await asyncio.to_thread(busy.begun.acquire, timeout=WAIT_S)
    await asyncio.sleep(0.01)
    assert busy.batches == [[1], [2, 3]], "no third thread begins the rest"
    busy.gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10]
    assert busy.batches == [[1], [2, 3], [4, 5]]


async def test_more_than_may_wait_is_refused_until_there_is_room(busy: Mill) -> None:
    batcher = MicroBatcher(busy, max_batch=1, max_waiting=2)
    first = await under_way(batcher, busy)
    others = await waiting(batcher, 2, 3)
    with pytest.raises(Overloaded):
        await batcher.submit(4)
    busy.gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6]
    assert await batcher.submit(5) == 10


async def test_what_is_cancelled_before_it_ran_never_runs_and_makes_room(busy: Mill) -> None:
    batcher = MicroBatcher(busy, max_batch=10, max_waiting=2)
    first = await under_way(batcher, busy)
    second, third = await waiting(batcher, 2, 3)
    second.cancel()
    await asyncio.sleep(0)
    (fourth,) = await waiting(batcher, 4)
    busy.gate.set()
    assert await asyncio.gather(first, third, fourth) == [2, 6, 8]
    assert busy.batches == [[1], [3, 4]]
    assert second.cancelled()


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_what_is_cancelled_just_before_the_thread_gets_it_never_runs(turns: int) -> None:
    async def cancel() -> None:
        for _ in range(turns):  # of the event loop
            await asyncio.sleep(0)
        doomed.cancel()

    mill = Mill()
    batcher = MicroBatcher(mill, max_batch=10)
    cancelling = asyncio.create_task(cancel())
    doomed = asyncio.create_task(batcher.submit(1))
    await asyncio.gather(cancelling, doomed, return_exceptions=True)
    assert doomed.cancelled()
    assert await batcher.submit(2) == 4
    assert mill.batches == [[2]]


async def test_cancelling_what_runs_leaves_the_others_their_results(busy: Mill) -> None:
    batcher = MicroBatcher(busy, max_batch=10)
    first = await under_way(batcher, busy)
    (second,) = await waiting(batcher, 2)
    first.cancel()
    busy.gate.set()
    assert await second == 4
    assert first.cancelled()


async def test_an_exception_among_the_results_fails_its_item_alone() -> None:
    batcher = MicroBatcher(Mill(), max_batch=10)
    outcomes = await asyncio.gather(*map(batcher.submit, (1, -1, 2)), return_exceptions=True)
    assert outcomes[0] == 2
    assert isinstance(outcomes[1], EngineFailed)
    assert outcomes[2] == 4


@pytest.mark.parametrize("answer", ["raises", "one too few", "one too many"])
async def test_a_batch_that_fails_fails_all_of_it_and_nothing_after_it(answer: str) -> None:
    def run(items: Sequence[int]) -> list[int | Exception]:
        if len(items) == 1:
            return [items[0]]
        if answer == "raises":
            raise MemoryError("no room")
        return [0] * (len(items) + (1 if answer.endswith("many") else -1))

    batcher = MicroBatcher(run, max_batch=10)
    together = asyncio.gather(*map(batcher.submit, (1, 2, 3)), return_exceptions=True)
    outcomes = await asyncio.wait_for(together, WAIT_S)
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    assert await batcher.submit(4) == 4


async def test_the_thread_ends_with_the_last_reference_to_its_batcher() -> None:
    before = set(threading.enumerate())
    batcher = MicroBatcher(Mill(), max_batch=1)
    await batcher.submit(1)
    (thread,) = set(threading.enumerate()) - before
    del batcher
    gc.collect()
    await asyncio.to_thread(thread.join, WAIT_S)
    assert not thread.is_alive()


@given(
    groups=st.lists(st.lists(st.integers(0, 1000), max_size=8), max_size=8),
    max_batch=st.integers(1, 5),
)
@settings(deadline=None)
def test_everything_runs_once_in_the_order_of_its_coming(
    groups: list[list[int]], max_batch: int
) -> None:
    mill = Mill()

    async def submit_all() -> list[int]:
        batcher = MicroBatcher(mill, max_batch=max_batch)
        tasks = []
        for group in groups:
            tasks += await waiting(batcher, *group)
        return await asyncio.gather(*tasks)

    items = [item for group in groups for item in group]
    assert asyncio.run(submit_all()) == [2 * item for item in items]
    assert [item for batch in mill.batches for item in batch] == items
    assert all(1 <= len(batch) <= max_batch for batch in mill.batches)
