"""Jobs from the desk to the worker: bounds, keys, attempts, backoff, failure, cancellation."""

import asyncio
import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from infra.job_audio import JobAudio
from speech.errors import (
    EngineFailed,
    InvalidRequest,
    ModelNotInstalled,
    ModelUnavailable,
    OutOfMemory,
    Overloaded,
    SpeechError,
    UnsupportedAudio,
)
from speech.jobs import job_worker
from speech.jobs.job_worker import Progress
from speech.jobs.states import Job, Lease
from speech.log_context import job_id
from tests.unit.job_service import RULES, Jobs, eventually, jobs_in


@pytest.fixture
def jobs(tmp_path: Path):
    jobs = jobs_in(tmp_path)
    yield jobs
    jobs.store.close()


class Attempts:
    """Scripted work: an error for each attempt that fails, then a result."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.begun = 0

    async def __call__(self, job: Job, data: bytes, progress: Progress) -> str:
        self.begun += 1
        if self.errors:
            raise self.errors.pop(0)
        return '"done"'


class Endless:
    """Work that runs until it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, job: Job, data: bytes, progress: Progress) -> str:
        progress.begin("transcribe")
        progress.seconds_done = 1.5
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return ""


# ---------------------------------------------------------------- the desk


def test_a_submitted_job_and_its_audio_are_on_disk(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.desk.submit("ann", b"RIFF", "{}")
    assert job.state == "queued"
    assert (tmp_path / "audio" / job.id).read_bytes() == b"RIFF"
    assert jobs_in(tmp_path).desk.find("ann", job.id) == job


def test_the_queue_admits_its_bound_and_not_one_more(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, max_queued=2)
    first = jobs.desk.submit("", b"1", "{}")
    jobs.desk.submit("", b"2", "{}")
    with pytest.raises(Overloaded) as refused:
        jobs.desk.submit("", b"3", "{}")
    assert refused.value.retry_after_s > 0
    assert len(list((tmp_path / "audio").iterdir())) == 2, "nothing is left of a refused job"
    jobs.desk.cancel("", first.id)
    jobs.desk.submit("", b"3", "{}")


def test_stored_audio_is_admitted_up_to_its_bound_and_not_a_byte_more(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, max_stored_bytes=10)
    jobs.desk.submit("", b"123456", "{}")
    with pytest.raises(Overloaded):
        jobs.desk.submit("", b"12345", "{}")
    jobs.desk.submit("", b"1234", "{}")


def test_a_full_disk_is_an_overload_and_leaves_nothing(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Overloaded):
        jobs.desk.submit("", b"1", "{}")
    assert list((tmp_path / "audio").iterdir()) == []
    assert jobs.desk.page("", 10, None) == ([], False)


def test_one_key_makes_one_job(jobs: Jobs, tmp_path: Path) -> None:
    first = jobs.desk.submit("ann", b"RIFF", "{}", "key")
    assert jobs.desk.submit("ann", b"RIFF", "{}", "key") == first
    assert jobs.desk.submit("bob", b"RIFF", "{}", "key").id != first.id
    assert len(list((tmp_path / "audio").iterdir())) == 2


@pytest.mark.parametrize(("data", "request_"), [(b"other", "{}"), (b"RIFF", '{"a":1}')])
def test_a_key_for_another_request_is_refused(jobs: Jobs, data: bytes, request_: str) -> None:
    jobs.desk.submit("ann", b"RIFF", "{}", "key")
    with pytest.raises(InvalidRequest, match="idempotency"):
        jobs.desk.submit("ann", data, request_, "key")


async def test_the_same_key_at_the_same_moment_makes_one_job(jobs: Jobs, tmp_path: Path) -> None:
    made = await asyncio.gather(
        *(asyncio.to_thread(jobs.desk.submit, "", b"RIFF", "{}", "key") for _ in range(8))
    )
    assert len({job.id for job in made}) == 1
    assert len(list((tmp_path / "audio").iterdir())) == 1


def test_the_audio_of_a_repeated_request_that_cannot_be_removed_is_no_error(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to no job, so retention removes it later."""
    first = jobs.desk.submit("", b"RIFF", "{}", "key")
    find = jobs.store.find_by_key
    answers = [lambda *_: None, find]  # the first request was stored after the second one searched
    monkeypatch.setattr(jobs.store, "find_by_key", lambda *key: answers.pop(0)(*key))

    def stuck(id: str) -> None:
        raise PermissionError(id)

    monkeypatch.setattr(jobs.audio, "remove", stuck)
    assert jobs.desk.submit("", b"RIFF", "{}", "key") == first


def test_a_page_after_a_job_that_is_not_there_is_refused(jobs: Jobs) -> None:
    with pytest.raises(InvalidRequest):
        jobs.desk.page("ann", 10, "job_x")


def test_audio_is_stored_on_any_file_system_of_fsspec() -> None:
    audio = JobAudio("memory://bucket/jobs")
    audio.put("job_1", b"RIFF")
    assert audio.get("job_1") == b"RIFF"
    assert fsspec.filesystem("memory").exists("/bucket/jobs/job_1")
    assert audio.stored() == ["job_1"]
    assert 0 <= audio.age_s("job_1") < 60
    audio.remove("job_1")
    audio.remove("job_1")
    assert audio.stored() == []
    with pytest.raises(FileNotFoundError):
        audio.get("job_1")


def test_every_error_of_a_file_system_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of fsspec's implementations translate the errors of their libraries."""
    audio = JobAudio("memory://bucket/jobs")

    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("no endpoint")

    for name in ("pipe_file", "cat_file", "rm_file", "ls", "modified"):
        monkeypatch.setattr(fsspec.filesystem("memory"), name, unreachable)
    calls = (
        lambda: audio.put("job_1", b"1"),
        lambda: audio.get("job_1"),
        lambda: audio.remove("job_1"),
        audio.stored,
        lambda: audio.age_s("job_1"),
    )
    for call in calls:
        with pytest.raises(OSError, match="no endpoint"):
            call()


# ---------------------------------------------------------------- attempts


async def test_work_gets_the_audio_and_its_result_is_stored(jobs: Jobs) -> None:
    job = jobs.desk.submit("", b"12345", "{}")
    async with jobs.working():
        done = await jobs.ended(job.id)
    assert (done.state, done.result, done.attempts) == ("completed", "5", 1)


async def test_the_log_records_of_an_attempt_have_the_id_of_its_job(jobs: Jobs) -> None:
    seen: list[str | None] = []

    async def work(job: Job, data: bytes, progress: Progress) -> str:
        seen.append(job_id.get())
        return "done"

    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        await jobs.ended(job.id)
    assert seen == [job.id]
    assert job_id.get() is None


async def test_a_failed_attempt_is_repeated(jobs: Jobs) -> None:
    work = Attempts(EngineFailed("1"), RuntimeError("2"))
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        done = await jobs.ended(job.id)
    assert (done.state, done.attempts, done.error) == ("completed", 3, None)


@pytest.mark.parametrize(
    ("attempts", "wait_s"), [(1, 2.0), (2, 4.0), (3, 8.0), (8, 256.0), (9, 300.0), (5000, 300.0)]
)
def test_the_wait_doubles_up_to_its_bound(attempts: int, wait_s: float) -> None:
    rules = replace(RULES, backoff_s=2.0, max_backoff_s=300.0)
    assert rules.backoff(attempts) == wait_s


async def test_a_job_that_fails_every_attempt_fails_with_its_last_error(jobs: Jobs) -> None:
    work = Attempts(*(EngineFailed(f"attempt {n}") for n in range(1, 9)))
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        dead = await jobs.ended(job.id)
    assert (dead.state, dead.attempts) == ("failed", 3)
    assert (dead.error_code, dead.error) == ("engine_failed", "attempt 3")
    assert work.begun == 3


async def test_a_model_that_does_not_load_counts_as_a_failed_attempt(jobs: Jobs) -> None:
    work = Attempts(*(ModelUnavailable("no weights") for _ in range(9)))
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        assert (await jobs.ended(job.id)).error_code == "model_unavailable"


async def test_a_job_that_met_an_out_of_memory_is_attempted_again(jobs: Jobs) -> None:
    work = Attempts(OutOfMemory("the card is full"))
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        done = await jobs.ended(job.id)
    assert (done.state, done.attempts) == ("completed", 2)


@pytest.mark.parametrize(
    "error", [UnsupportedAudio("no audio"), ModelNotInstalled("no weights", "/srv/models")]
)
async def test_a_non_retryable_error_is_not_retried(jobs: Jobs, error: SpeechError) -> None:
    work = Attempts(error)
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        dead = await jobs.ended(job.id)
    assert (dead.state, dead.attempts, dead.error_code) == ("failed", 1, error.code)
    assert dead.error == error.message


async def test_an_unexpected_error_is_not_revealed_to_the_client(jobs: Jobs) -> None:
    work = Attempts(*(RuntimeError("/secret/path") for _ in range(9)))
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        dead = await jobs.ended(job.id)
    assert dead.error_code == "internal_error"
    assert "secret" not in str(dead.error)


async def test_a_full_queue_is_not_a_failed_attempt(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_worker, "OVERLOADED_RETRY_S", 0.01)
    work = Attempts(*(Overloaded("full") for _ in range(9)))
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        done = await jobs.ended(job.id)
    assert (done.state, done.attempts, work.begun) == ("completed", 1, 10)


async def test_a_job_that_is_too_old_fails(jobs: Jobs) -> None:
    work = Attempts()
    job = jobs.desk.submit("", b"1", "{}")
    await asyncio.sleep(0.02)
    async with jobs.working(work, max_age_s=0.01):
        dead = await jobs.ended(job.id)
    assert (dead.state, dead.error_code, work.begun) == ("failed", "deadline_exceeded", 0)


async def test_a_job_whose_audio_is_missing_fails(jobs: Jobs) -> None:
    job = jobs.desk.submit("", b"1", "{}")
    jobs.audio.remove(job.id)
    async with jobs.working():
        assert (await jobs.ended(job.id)).state == "failed"


# ---------------------------------------------------------------- while it runs


async def test_the_progress_of_a_running_job_is_seen(jobs: Jobs) -> None:
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(Endless(), lease_s=0.5):
        seen = await jobs.until(job.id, lambda job: job.stage is not None)
    assert (seen.state, seen.stage, seen.seconds_done) == ("processing", "transcribe", 1.5)


async def test_cancelling_a_job_stops_its_work(jobs: Jobs) -> None:
    work = Endless()
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work, lease_s=0.5), asyncio.timeout(20):
        await work.begun.wait()
        cancelled = jobs.desk.cancel("", job.id)
        assert cancelled is not None
        assert cancelled.state == "cancelled"
        await work.cancelled.wait()
    assert (await jobs.ended(job.id)).state == "cancelled"


async def test_a_worker_that_stops_finishes_what_runs_and_takes_nothing_new(jobs: Jobs) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def work(job: Job, data: bytes, progress: Progress) -> str:
        begun.set()
        await finish.wait()
        return "1"

    running = [jobs.desk.submit("", b"1", "{}") for _ in range(2)]
    waiting = jobs.desk.submit("", b"2", "{}")
    async with jobs.working(work) as worker, asyncio.timeout(20):
        await jobs.until(running[1].id, lambda job: job.state == "processing")
        worker.stop()
        finish.set()
        for job in running:
            assert (await jobs.ended(job.id)).state == "completed"
        await jobs.until(waiting.id, lambda job: job.state == "queued")


async def test_a_cancelled_worker_requeues_its_jobs_at_once(jobs: Jobs) -> None:
    work = Endless()
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(work):
        await work.begun.wait()
    async with jobs.working():
        done = await jobs.ended(job.id)
    assert (done.state, done.attempts) == ("completed", 1)


async def test_a_worker_cancelled_while_it_takes_a_job_requeues_it_at_once(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, cancelled = jobs.store.take, threading.Event()
    taking, leases = threading.Event(), []

    def slow_take(lease_s: float) -> Lease | None:
        taking.set()
        assert cancelled.wait(20)
        leases.append(take(lease_s))
        return leases[-1]

    monkeypatch.setattr(jobs.store, "take", slow_take)
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working():
        assert await asyncio.to_thread(taking.wait, 20)
        asyncio.get_running_loop().call_soon(cancelled.set)
    await eventually(lambda: any(leases))
    requeued = await jobs.until(job.id, lambda job: job.state == "queued")
    assert requeued.attempts == 0


async def test_a_job_of_a_dead_worker_is_done_by_another(jobs: Jobs) -> None:
    job = jobs.desk.submit("", b"1", "{}")
    assert jobs.store.take(0.05) is not None  # without a heartbeat
    async with jobs.working():
        done = await jobs.ended(job.id)
    assert (done.state, done.attempts) == ("completed", 2)


async def test_a_job_that_kills_every_worker_fails(jobs: Jobs) -> None:
    job = jobs.desk.submit("", b"1", "{}")
    for _ in range(2):
        lease = jobs.store.take(10.0)
        assert lease is not None
        jobs.store.requeue(lease, 0.0, None, counted=True)
    assert jobs.store.take(0.0) is not None  # without a heartbeat
    async with jobs.working():
        dead = await jobs.ended(job.id)
    assert (dead.state, dead.attempts) == ("failed", 3)
    assert dead.error == "the worker of this job died"


async def test_a_worker_survives_a_database_outage(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, complete = jobs.store.take, jobs.store.complete
    failing = {"take": 3, "complete": 3}

    def unless_unavailable(name: str, call: object):
        def ask(*args: object) -> object:
            if failing[name]:
                failing[name] -= 1
                raise Overloaded("the job store does not answer")
            return call(*args)

        return ask

    monkeypatch.setattr(jobs.store, "take", unless_unavailable("take", take))
    monkeypatch.setattr(jobs.store, "complete", unless_unavailable("complete", complete))
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working():
        assert (await jobs.ended(job.id)).state == "completed"
    assert failing == {"take": 0, "complete": 0}


@pytest.mark.parametrize("step", ["take_webhook", "take_expired", "expired_audio", "with_audio"])
async def test_an_unexpected_error_in_one_loop_of_a_worker_does_not_stop_the_others(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a row that cannot be read")

    monkeypatch.setattr(jobs.store, step, broken)
    async with jobs.working():
        await eventually(lambda: "a row that cannot be read" in caplog.text)
        job = jobs.desk.submit("", b"1", "{}")
        assert (await jobs.ended(job.id)).state == "completed"


async def test_an_error_that_persists_is_logged_once(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0

    def away(*_: object) -> None:
        nonlocal rounds
        rounds += 1
        raise Overloaded("the job store does not answer")

    monkeypatch.setattr(jobs.store, "take_expired", away)
    async with jobs.working():
        await eventually(lambda: rounds > 3)
    assert caplog.text.count("does not answer") == 1
