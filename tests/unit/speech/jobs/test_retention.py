"""Removal of what expired: audio, jobs, audio without a job, and what cannot be removed."""

import os
import time
from pathlib import Path

import pytest

from speech.errors import Overloaded
from speech.jobs import job_worker, retention
from speech.jobs.retention import Retention
from tests.unit.job_service import Jobs, eventually, jobs_in


@pytest.fixture
def jobs(tmp_path: Path):
    jobs = jobs_in(tmp_path, max_stored_bytes=10)
    yield jobs
    jobs.store.close()


def retention_of(jobs: Jobs) -> Retention:
    return Retention(jobs.store, jobs.audio, audio_ttl_s=0.0, result_ttl_s=0.0)


def ended(jobs: Jobs, data: bytes) -> str:
    """A job that was cancelled a moment ago."""
    job = jobs.desk.submit("", data, "{}")
    jobs.desk.cancel("", job.id)
    time.sleep(0.001)
    return job.id


def make_undeletable(file: Path) -> None:
    """Put a directory in place of a file: removing it as a file fails, also for root."""
    file.unlink()
    file.mkdir()


def make_deletable(file: Path) -> None:
    file.rmdir()
    file.write_bytes(b"1")


async def test_audio_and_job_are_removed_after_their_ttl(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_worker, "EXPIRY_INTERVAL_S", 0.02)
    job = jobs.desk.submit("", b"1", "{}")
    async with jobs.working(audio_ttl_s=0.0, result_ttl_s=3600.0):
        await jobs.ended(job.id)
        await eventually(lambda: not (tmp_path / "audio" / job.id).exists())
    assert (await jobs.ended(job.id)).result == "1"
    async with jobs.working(audio_ttl_s=0.0, result_ttl_s=0.0):
        await eventually(lambda: jobs.desk.find("", job.id) is None)


async def test_audio_of_a_submission_that_never_finished_is_removed(
    jobs: Jobs, tmp_path: Path
) -> None:
    waiting = jobs.desk.submit("", b"1", "{}")
    for id, age_s in ((waiting.id, 7200), ("job_lost", 7200), ("job_uploading", 60)):
        jobs.audio.put(id, b"1")
        then = time.time() - age_s
        os.utime(tmp_path / "audio" / id, (then, then))
    async with jobs.working():
        await eventually(lambda: not (tmp_path / "audio" / "job_lost").exists())
    assert (tmp_path / "audio" / waiting.id).exists()
    assert (tmp_path / "audio" / "job_uploading").exists()


def test_audio_that_cannot_be_removed_does_not_keep_the_rest(jobs: Jobs, tmp_path: Path) -> None:
    stuck, other = ended(jobs, b"12"), ended(jobs, b"345678")
    make_undeletable(tmp_path / "audio" / stuck)
    retention_of(jobs).expire()
    assert jobs.desk.find("", other) is None
    assert not (tmp_path / "audio" / other).exists()
    assert jobs.desk.find("", stuck) is not None, "its audio is still to be removed"


def test_only_audio_that_could_not_be_removed_still_counts_against_the_bound(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "REMOVAL_RETRY_S", 0.0)
    stuck = ended(jobs, b"12")
    ended(jobs, b"345678")
    make_undeletable(tmp_path / "audio" / stuck)
    at_work = retention_of(jobs)
    at_work.expire()
    with pytest.raises(Overloaded):
        jobs.desk.submit("", b"123456789", "{}")
    ended(jobs, b"12345678")
    make_deletable(tmp_path / "audio" / stuck)
    at_work.expire()
    jobs.desk.submit("", b"1234567890", "{}")


def test_audio_that_cannot_be_removed_is_retried_later_and_logged_once(
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(retention, "REMOVAL_RETRY_S", 0.0)
    stuck = ended(jobs, b"1")
    make_undeletable(tmp_path / "audio" / stuck)
    at_work = retention_of(jobs)
    for _ in range(3):
        at_work.expire()
    assert caplog.text.count(stuck) == 1
    make_deletable(tmp_path / "audio" / stuck)
    at_work.expire()
    assert jobs.desk.find("", stuck) is None


def test_audio_that_cannot_be_removed_is_not_retried_in_every_round(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []

    def remove(id: str) -> None:
        removed.append(id)
        raise PermissionError(id)

    monkeypatch.setattr(jobs.audio, "remove", remove)
    stuck = ended(jobs, b"1")
    at_work = retention_of(jobs)
    for _ in range(3):
        at_work.expire()
    assert removed == [stuck]


def test_one_orphan_that_cannot_be_removed_or_read_does_not_keep_the_rest(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        jobs.audio.put(f"job_{number}", b"1")
    remove = jobs.audio.remove

    def age_s(id: str) -> float:
        if id == "job_1":
            raise FileNotFoundError(id)  # removed by another worker since it was listed
        return 2 * retention.ORPHAN_AGE_S

    def unless_stuck(id: str) -> None:
        if id == "job_2":
            raise PermissionError(id)
        remove(id)

    monkeypatch.setattr(jobs.audio, "age_s", age_s)
    monkeypatch.setattr(jobs.audio, "remove", unless_stuck)
    retention_of(jobs).remove_orphans()
    assert sorted(jobs.audio.stored()) == ["job_1", "job_2"]
