"""The slots of a replica: who runs when calls of jobs and of clients who wait meet."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from deployments.runtime.worker import Call, Worker

WAIT_S = 20.0


class Long:
    """Work in many small pieces until a test ends it; it asks between them, as an engine does."""

    def __init__(self) -> None:
        self.holds = threading.Event()
        self.end = threading.Event()
        self.pieces = 0

    def __call__(self, call: Call) -> str:
        with call.slot():
            self.holds.set()
            while not call.cancelled():
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


async def test_a_client_goes_before_the_job_that_runs() -> None:
    worker, job = Worker(1), Long()
    running = asyncio.create_task(worker.run(job, "job_1"))
    await held(job)
    assert await asyncio.wait_for(worker.run(quick), WAIT_S) == "quick"
    assert not running.done()
    job.end.set()
    assert await asyncio.wait_for(running, WAIT_S) == "done"


async def test_a_job_stands_aside_until_no_client_wants_its_slot() -> None:
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
                call.cancelled()

    calls = [worker.run(counted, f"job_{n}" if n % 2 else None) for n in range(20)]
    await asyncio.wait_for(asyncio.gather(*calls), WAIT_S)
    assert most == 2


async def test_jobs_take_every_slot_that_no_client_wants() -> None:
    worker, jobs = Worker(2), [Long(), Long()]
    running = [asyncio.create_task(worker.run(job, f"job_{n}")) for n, job in enumerate(jobs)]
    for job in jobs:
        await held(job)
    for job in jobs:
        job.end.set()
    assert await asyncio.wait_for(asyncio.gather(*running), WAIT_S) == ["done", "done"]


@pytest.mark.parametrize("job", [None, "job_1"])
async def test_a_call_that_is_given_up_leaves_at_its_next_question(job: str | None) -> None:
    worker, work = Worker(1), Long()
    call = asyncio.create_task(worker.run(work, job))
    await held(work)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.wait_for(worker.run(quick, "job_2"), WAIT_S) == "quick"


async def test_a_job_that_is_given_up_while_it_stands_aside_leaves() -> None:
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


async def test_a_client_that_was_given_up_in_the_queue_is_not_waited_for() -> None:
    worker, client = Worker(1), Long()
    running = asyncio.create_task(worker.run(client))
    await held(client)
    waiting = asyncio.create_task(worker.run(quick))
    await asyncio.sleep(0)
    waiting.cancel()
    client.end.set()
    assert await asyncio.wait_for(running, WAIT_S) == "done"
    assert await asyncio.wait_for(worker.run(quick, "job_1"), WAIT_S) == "quick"


async def test_jobs_go_on_while_a_client_waits_for_what_a_job_holds() -> None:
    worker, job = Worker(1), Long()
    place, asks = threading.Lock(), threading.Event()

    def with_place(call: Call) -> str:
        with place:
            return job(call)

    def wants_place(call: Call) -> str:
        with call.aside():
            asks.set()
            assert place.acquire(timeout=WAIT_S)
        with call.slot():
            place.release()
            return "client"

    running = asyncio.create_task(worker.run(with_place, "job_1"))
    await held(job)
    online = asyncio.create_task(worker.run(wants_place))
    assert await asyncio.to_thread(asks.wait, WAIT_S)
    before = job.pieces
    await eventually(lambda: job.pieces > before)
    job.end.set()
    assert await asyncio.wait_for(running, WAIT_S) == "done"
    assert await asyncio.wait_for(online, WAIT_S) == "client"


async def test_only_what_is_done_for_jobs_is_followed() -> None:
    worker, end = Worker(1), threading.Event()

    def report(call: Call) -> None:
        call.report(2.0)
        call.report(1.0)  # another channel of the same job
        assert end.wait(WAIT_S)

    calls = [asyncio.create_task(worker.run(report, job)) for job in ("job_1", None)]
    await eventually(lambda: worker.progress == {"job_1": 2.0})
    end.set()
    await asyncio.gather(*calls)
    assert worker.progress == {}
