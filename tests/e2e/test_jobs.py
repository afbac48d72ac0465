"""Jobs survive: random kills of many workers, and the death of a whole cluster."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra.job_audio import JobAudio
from infra.job_store import SqlJobStore
from speech.jobs.desk import JobBounds, JobDesk
from tests.e2e.launched import eventually

JOBS = 100
WORKERS = 3
PAUSE_S = 2.0
"""Longer than the lease of a worker."""


# ---------------------------------------------------------------- chaos


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    url: str = request.getfixturevalue("postgres")
    return url


def test_random_kills_lose_no_job_and_give_none_two_results(
    database: str, tmp_path: Path, repository: Path
) -> None:
    """Workers are killed, or suspended until others have their jobs and then resumed."""
    store = SqlJobStore(database)
    audio = str(tmp_path / "audio")
    desk = JobDesk(store, JobAudio(audio), JobBounds(JOBS, 10**6), lambda url: None)
    clips = {desk.submit("", clip, "{}").id: clip for clip in map(_clip, range(JOBS))}
    seen: dict[str, set[str]] = {id: set() for id in clips}
    most_attempts = 0
    chance = random.Random(4)

    def check() -> bool:
        """Collect every result that a client could see now."""
        nonlocal most_attempts
        for id, results in seen.items():
            job = store.find("", id)
            assert job is not None
            assert job.state in ("queued", "processing", "completed"), job.error
            most_attempts = max(most_attempts, job.attempts)
            if job.result is not None:
                results.add(job.result)
        return all(seen.values())

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.e2e.chaos_worker", database, audio]
        return subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)

    def ready(worker: subprocess.Popen[str]) -> subprocess.Popen[str]:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        return worker

    workers = [start() for _ in range(WORKERS)]
    try:
        deadline = time.monotonic() + 100
        while not check():
            assert time.monotonic() < deadline, "not every job was done"
            victim = chance.randrange(WORKERS)
            worker = ready(workers[victim])
            time.sleep(chance.uniform(0.2, 0.8))
            if chance.random() < 0.3:
                worker.send_signal(signal.SIGSTOP)
                time.sleep(PAUSE_S)
                worker.send_signal(signal.SIGCONT)
                time.sleep(0.5)  # it tries to complete a job that another worker has by now
            worker.kill()
            worker.wait()
            workers[victim] = start()
        time.sleep(PAUSE_S)
        check()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        store.close()
    assert most_attempts > 1, "some worker was killed at work"
    for id, clip in clips.items():
        (result,) = seen[id]
        assert json.loads(result)["audio"] == hashlib.sha256(clip).hexdigest()


def _clip(number: int) -> bytes:
    return f"clip {number}".encode()


# ---------------------------------------------------------------- a whole cluster


@contextmanager
def cluster(config: Path, repository: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A Ray cluster that serves the config: its URL, and what kills every process of it."""
    command = [sys.executable, "-m", "graphs.launch", str(config)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = (line.split()[1] for line in process.stdout if "  service " in line)
        yield next(found), lambda: kill_all(process.pid)
    finally:
        kill_all(process.pid)
        process.wait()


def kill_all(first: int) -> None:
    """SIGKILL for a process and its descendants, all suspended before the first is killed."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {first}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def post(url: str, audio: Path, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{url}/v1/process",
        files={"audio": ("audio", audio.read_bytes())},
        data={"request_json": json.dumps({"settings": {}, **fields})},
        timeout=240,
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def get_job(url: str, id: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/v1/jobs/{id}", timeout=30)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.timeout(600)
def test_jobs_outlive_the_whole_cluster(repository: Path, demo_audio: Path, tmp_path: Path) -> None:
    """A new cluster has the jobs that were queued, running and done when all was killed."""
    demo = yaml.safe_load((repository / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    args = demo["applications"][0]["args"]
    for unneeded in ("whisper", "live", "emotion", "diarization"):
        del args[unneeded]
    args["ingress"] = {"default_transcriber": "demo-vosk", "resources": {"num_cpus": 0.1}}
    args["onnx_asr"]["preload"] = ["demo-vosk"]
    args["jobs"] |= {"directory": str(tmp_path / "jobs"), "lease_s": 3, "poll_s": 0.1}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(demo), encoding="utf-8")
    clip, meeting = demo_audio / "dialogue-en.flac", demo_audio / "meeting-10min.opus"

    with cluster(config, repository) as (url, kill):
        waited = post(url, clip)["result"]["tra"]
        done = post(url, clip, async_process=True)["job_id"]
        eventually(lambda: get_job(url, done)["status"] == "completed")
        before = get_job(url, done)
        running = post(url, meeting, async_process=True)["job_id"]
        eventually(lambda: get_job(url, running)["status"] == "processing")
        queued = [post(url, clip, async_process=True)["job_id"] for _ in range(3)]
        kill()

    with cluster(config, repository) as (url, _):
        assert get_job(url, done) == before
        for id in queued:
            eventually(lambda id=id: get_job(url, id)["status"] == "completed", within_s=240)
            assert get_job(url, id)["result"]["tra"] == waited
        eventually(lambda: get_job(url, running)["status"] == "completed", within_s=240)
        again = get_job(url, running)
        assert again["attempts"] == 2
        assert again["result"]["tra"]["segments"][-1]["end"] > 500
