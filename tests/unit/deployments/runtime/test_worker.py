"""The slots of a replica: which calls run when batch and interactive calls compete for them."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from deployments.runtime.worker import Call, Worker

WAIT_S = 20.0


class Long:
    """Work in many small pieces until a test ends it, with a cancellation point between them."""

    def __init__(self) -> None:
        self.holds = threading.Event()
        self.end = threading.Event()
        self.pieces = 0

    def __call__(self, call: Call) -> str:
        with call.slot():
            self.holds.set()
            while not call.checkpoint():
                self.pieces += 1
                if self.end.wait(0.002):
                    return "done"
        return "cancelled"


def quick(call: Call) -> str:
    with call.slot():
        return "quick"


async def held(work: Long) -> None:
    assert await asyncio.to_thread(work.holds.wait, WAIT_S)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_an_interactive_call_takes_the_slot_of_a_running_batch_call() -> None:
    worker, job = Worker(1), Long()
    running = asyncio.create_task(worker.run(job, "job_1"))
    await held(job)
    assert await asyncio.wait_for(worker.run(quick), WAIT_S) == "quick"
    assert not running.done()
    job.end.set()
    assert await asyncio.wait_for(running, WAIT_S) == "done"


async def test_a_batch_call_yields_until_no_interactive_call_needs_its_slot() -> None:
    worker, job, clients = Worker(1), Long(), [Long(), Long(), Long()]
    running = asyncio.create_task(worker.run(job, "job_1"))
    await held(job)
    waiting = [asyncio.create_task(worker.run(client)) for client in clients]
    await held(clients[0])
    before = job.pieces
    for client, answer in zip(clients, waiting, strict=True):
        await held(client)
        client.end.set()
        assert await asyncio.wait_for(answer, WAIT_S) == "done"
        if client is not clients[-1]:
            assert job.pieces == before
    await eventually(lambda: job.pieces > before)
    job.end.set()
    assert await asyncio.wait_for(running, WAIT_S) == "done"


async def test_no_more_run_at_once_than_there_are_slots() -> None:
    worker = Worker(2)
    lock, running, most = threading.Lock(), 0, 0

    def counted(call: Call) -> None:
        nonlocal running, most
        with call.slot():
            for _ in range(5):
                with lock:
                    running += 1
                    most = max(most, running)
                threading.Event().wait(0.002)
                with lock:
                    running -= 1
                call.checkpoint()

    calls = [worker.run(counted, f"job_{n}" if n % 2 else None) for n in range(20)]
    await asyncio.wait_for(asyncio.gather(*calls), WAIT_S)
    assert most == 2


async def test_batch_calls_take_every_slot_that_no_interactive_call_needs() -> None:
    worker, jobs = Worker(2), [Long(), Long()]
    running = [asyncio.create_task(worker.run(job, f"job_{n}")) for n, job in enumerate(jobs)]
    for job in jobs:
        await held(job)
    for job in jobs:
        job.end.set()
    assert await asyncio.wait_for(asyncio.gather(*running), WAIT_S) == ["done", "done"]


@pytest.mark.parametrize("job", [None, "job_1"])
async def test_a_cancelled_call_ends_at_its_next_cancellation_point(job: str | None) -> None:
    worker, work = Worker(1), Long()
    call = asyncio.create_task(worker.run(work, job))
    await held(work)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.wait_for(worker.run(quick, "job_2"), WAIT_S) == "quick"


async def test_a_batch_call_that_is_cancelled_while_it_yields_ends() -> None:
    worker, job, client = Worker(1), Long(), Long()
    running = asyncio.create_task(worker.run(job, "job_1"))
    await held(job)
    online = asyncio.create_task(worker.run(client))
    await held(client)
    before = job.pieces
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    client.end.set()
    assert await asyncio.wait_for(online, WAIT_S) == "done"
    assert await asyncio.wait_for(worker.run(quick, "job_2"), WAIT_S) == "quick"
    assert job.pieces == before


async def test_an_interactive_call_that_was_cancelled_in_the_queue_holds_up_nothing() -> None:
    worker, client = Worker(1), Long()
    running = asyncio.create_task(worker.run(client))
    await held(client)
    waiting = asyncio.create_task(worker.run(quick))
    await asyncio.sleep(0)
    waiting.cancel()
    client.end.set()
    assert await asyncio.wait_for(running, WAIT_S) == "done"
    assert await asyncio.wait_for(worker.run(quick, "job_1"), WAIT_S) == "quick"


async def test_batch_calls_run_while_an_interactive_call_waits_for_what_one_holds() -> None:
    worker, job = Worker(1), Long()
    place, waits = threading.Lock(), threading.Event()

    def with_place(call: Call) -> str:
        with place:
            return job(call)

    def needs_place(call: Call) -> str:
        with call.without_demand():
            waits.set()
            assert place.acquire(timeout=WAIT_S)
        with call.slot():
            place.release()
            return "client"

    running = asyncio.create_task(worker.run(with_place, "job_1"))
    await held(job)
    online = asyncio.create_task(worker.run(needs_place))
    assert await asyncio.to_thread(waits.wait, WAIT_S)
    before = job.pieces
    await eventually(lambda: job.pieces > before)
    job.end.set()
    assert await asyncio.wait_for(running, WAIT_S) == "done"
    assert await asyncio.wait_for(online, WAIT_S) == "client"


async def test_progress_covers_batch_calls_only() -> None:
    worker, end = Worker(1), threading.Event()

    def report(call: Call) -> None:
        call.report(2.0)
        call.report(1.0)  # a report may be behind the last one
        assert end.wait(WAIT_S)

    calls = [asyncio.create_task(worker.run(report, job)) for job in ("job_1", None)]
    await eventually(lambda: worker.progress == {"job_1": 2.0})
    end.set()
    await asyncio.gather(*calls)
    assert worker.progress == {}


async def test_a_progress_report_after_cancellation_leaves_nothing_behind() -> None:
    worker, end, reported = Worker(1), threading.Event(), threading.Event()

    def report_late(call: Call) -> None:
        with call.slot():
            call.report(1.0)
            end.wait(WAIT_S)
            call.report(2.0)
            reported.set()

    running = asyncio.create_task(worker.run(report_late, "job_1"))
    await eventually(lambda: worker.progress == {"job_1": 1.0})
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    end.set()
    assert await asyncio.to_thread(reported.wait, WAIT_S)
    assert worker.progress == {}


async def test_the_end_of_one_call_of_a_job_leaves_the_progress_of_its_others() -> None:
    worker, ends = Worker(2), (threading.Event(), threading.Event())

    def channel(seconds: float, end: threading.Event) -> Callable[[Call], None]:
        def work(call: Call) -> None:
            with call.slot():
                call.report(seconds)
                assert end.wait(WAIT_S)

        return work

    calls = [
        asyncio.create_task(worker.run(channel(seconds, end), "job_1"))
        for seconds, end in zip((3.0, 2.0), ends, strict=True)
    ]
    await eventually(lambda: worker.progress == {"job_1": 3.0})
    ends[0].set()
    await calls[0]
    assert worker.progress == {"job_1": 2.0}
    ends[1].set()
    await calls[1]
    assert worker.progress == {}
