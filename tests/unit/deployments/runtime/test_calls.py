"""Calls of other deployments: deadlines, the retry after a death, and errors of the domain."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.runtime import calls
from deployments.runtime.calls import ReplicaDied, call, call_for_reference
from speech.errors import (
    DeadlineExceeded,
    EngineFailed,
    ModelUnavailable,
    OutOfMemory,
    Overloaded,
    SpeechError,
    UnsupportedAudio,
)
from tests.unit.deployments.fake_handles import FakeMethod

LOST = ObjectLostError("00ff", None, "")


def method(work: Callable[..., Any]) -> Any:
    return FakeMethod("Fake", work)


def failing(*errors: Exception) -> Any:
    """A method whose calls raise these errors one after the other, then return "done"."""
    left = list(errors)

    async def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return method(work)


def in_task(cause: Exception) -> Exception:
    """The error as Ray raises it in the caller."""
    return RayTaskError("work", "", cause).as_instanceof_cause()  # type: ignore[no-any-return]


async def hang() -> None:
    await asyncio.Event().wait()


async def test_a_call_returns_the_value_of_its_method() -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    handle = method(add)
    assert await call(handle, 1, 2, timeout_s=10) == 3
    assert handle.calls == [(1, 2)]


async def test_a_call_past_its_deadline_is_cancelled() -> None:
    handle = method(hang)
    with pytest.raises(DeadlineExceeded, match=r"Fake did not finish within 0.01 s"):
        await call(handle, timeout_s=0.01)
    assert [response.cancelled for response in handle.responses] == [True]


def wait_for_ever() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How long deployments have had no replica, seconds."""
    found: dict[str, float] = {}
    monkeypatch.setattr(calls, "absent_s", lambda name: found.get(name, 0.0))
    monkeypatch.setattr(calls, "ABSENCE_CHECK_S", 0.01)
    return found


async def test_a_call_that_no_replica_accepts_ends_once_none_has_run_for_too_long(
    absent: dict[str, float],
) -> None:
    handle: Any = FakeMethod("Fake", wait_for_ever, routed=False)
    caller = asyncio.create_task(call(handle, timeout_s=10, longest_absence_s=20))
    absent["Fake"] = 20.0
    await asyncio.sleep(0.05)
    assert not caller.done(), "it may run again within the bound"
    absent["Fake"] = 20.1
    with pytest.raises(ModelUnavailable, match="no replica of Fake runs") as error:
        await caller
    assert error.value.retry_after_s > 0
    assert [response.cancelled for response in handle.responses] == [True]
    with pytest.raises(ModelUnavailable):
        await asyncio.wait_for(call(handle, timeout_s=10, longest_absence_s=20), 0.05)


async def test_a_call_waits_for_a_busy_replica_and_a_job_for_one_that_is_started(
    absent: dict[str, float],
) -> None:
    handle: Any = FakeMethod("Fake", wait_for_ever, routed=False)
    with pytest.raises(DeadlineExceeded):
        await call(handle, timeout_s=0.05, longest_absence_s=20)
    absent["Fake"] = 1e6
    with pytest.raises(DeadlineExceeded):
        await call(handle, timeout_s=0.05)


async def test_a_call_that_a_stopping_replica_runs_is_not_rejected(
    absent: dict[str, float],
) -> None:
    async def work() -> str:
        await asyncio.sleep(0.05)
        return "done"

    absent["Fake"] = 1e6
    assert await call(method(work), timeout_s=10, longest_absence_s=20) == "done"


async def test_cancelling_the_caller_cancels_the_call() -> None:
    started = asyncio.Event()

    async def start_and_hang() -> None:
        started.set()
        await hang()

    handle = method(start_and_hang)
    caller = asyncio.create_task(call(handle, timeout_s=10))
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert [response.cancelled for response in handle.responses] == [True]


async def test_a_call_whose_replica_dies_is_sent_once_more() -> None:
    handle = failing(ActorDiedError())
    assert await call(handle, timeout_s=10) == "done"
    assert len(handle.calls) == 2


async def test_the_second_death_ends_the_call() -> None:
    handle = failing(ActorDiedError(), ActorDiedError())
    with pytest.raises(ReplicaDied):
        await call(handle, timeout_s=10)
    assert len(handle.calls) == 2


async def test_the_deadline_covers_both_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    clock, passed_s = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: clock() + passed_s)

    async def die_after_a_minute() -> str:
        nonlocal passed_s
        if not passed_s:
            passed_s = 60.0
            raise ActorDiedError
        await asyncio.sleep(1)
        return "a second attempt with a deadline of its own"

    handle = method(die_after_a_minute)
    with pytest.raises(DeadlineExceeded):
        await call(handle, timeout_s=60)
    assert len(handle.calls) == 2


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (BackPressureError(1, 1), Overloaded, "the queue of Fake is full"),
        (DeploymentUnavailableError(None), Overloaded, "Fake is not available"),
        (in_task(UnsupportedAudio("no audio")), UnsupportedAudio, "no audio"),
        (UnsupportedAudio("no audio"), UnsupportedAudio, "no audio"),
        (in_task(ZeroDivisionError()), EngineFailed, "Fake failed on this input"),
        (in_task(MemoryError()), OutOfMemory, "the memory of Fake does not suffice now"),
        (in_task(LOST), ModelUnavailable, "the input of Fake was lost with its node"),
        (LOST, ModelUnavailable, "the input of Fake was lost with its node"),
    ],
    ids=["full", "absent", "domain", "domain as it is", "bug", "memory", "lost input", "lost"],
)
async def test_errors_become_those_of_the_domain_and_are_not_retried(
    raised: Exception, kind: type[SpeechError], message: str
) -> None:
    handle = failing(raised)
    with pytest.raises(SpeechError) as error:
        await call(handle, timeout_s=10)
    assert (type(error.value), error.value.message) == (kind, message)
    assert len(handle.calls) == 1


async def test_the_first_value_of_a_generator_stays_a_reference() -> None:
    async def samples_and_facts(seconds: float) -> AsyncIterator[object]:
        yield "many samples"
        yield f"{seconds} s"

    handle = method(samples_and_facts)
    reference, facts = await call_for_reference(handle, 2.0, timeout_s=10)
    assert facts == "2.0 s"
    assert not reference.fetched
    assert await reference == "many samples"
    (response,) = handle.responses
    assert response.consumed == 2, "what is not consumed dies with the stream"


async def test_an_error_of_a_generator_is_raised_as_that_of_a_call() -> None:
    async def refuse() -> AsyncIterator[object]:
        raise in_task(UnsupportedAudio("no audio"))
        yield

    with pytest.raises(UnsupportedAudio, match="no audio") as error:
        await call_for_reference(method(refuse), timeout_s=10)
    assert type(error.value) is UnsupportedAudio


@pytest.mark.parametrize("yielded", [0, 1])
async def test_a_death_within_a_generator_is_retried(yielded: int) -> None:
    attempts = 0

    async def samples_and_facts() -> AsyncIterator[object]:
        nonlocal attempts
        attempts += 1
        for number, value in enumerate(("samples", "facts")):
            if attempts == 1 and number == yielded:
                raise ActorDiedError
            yield value

    reference, facts = await call_for_reference(method(samples_and_facts), timeout_s=10)
    assert (await reference, facts) == ("samples", "facts")
    assert attempts == 2


async def test_a_generator_past_its_deadline_is_cancelled() -> None:
    async def never() -> AsyncIterator[object]:
        yield await hang()

    handle = method(never)
    with pytest.raises(DeadlineExceeded):
        await call_for_reference(handle, timeout_s=0.01)
    assert handle.responses[0].cancelled
