"""Jobs on the running graph: the result of a synchronous call, whichever process is killed."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from infra.job_store import SqlJobStore
from speech.media.decoding import decode
from tests.integration.conftest import Service
from tests.integration.test_faults import eventually, in_use, replica_pids
from tests.integration.test_scaling import QUICK, running
from tests.unit.sound_files import to_s16, wav

Process = Callable[..., httpx.Response]
APP = "jobs"


@pytest.fixture(scope="module")
def service(
    application: Service, demo_args: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """OnnxAsr and runners with leases so short that a killed one's job is soon taken by another."""
    with application(APP, args_of(demo_args, tmp_path_factory.mktemp("jobs"))) as url:
        yield url


def args_of(demo_args: dict[str, Any], directory: Path) -> dict[str, Any]:
    return {
        "offline": True,
        "ingress": {**demo_args["ingress"], "default_transcriber": "demo-vosk"},
        "decoder": demo_args["decoder"],
        "onnx_asr": {**demo_args["onnx_asr"], "preload": ["demo-vosk"]},
        "jobs": {
            "directory": str(directory),
            "lease_s": 2,
            "poll_s": 0.1,
            "backoff_s": 0.1,
            "resources": {"num_cpus": 0.1},
            "lifecycle": {"drain_timeout_s": 6},
            "scaling": {"min_replicas": 1, "max_replicas": 2, **QUICK},
        },
    }


@pytest.fixture(scope="module")
def meeting(demo_audio: Path) -> Path:
    """Ten minutes of speech: long work."""
    return demo_audio / "meeting-10min.opus"


@pytest.fixture(scope="module")
def clip(demo_audio: Path) -> Path:
    return demo_audio / "dialogue-en.flac"


def submit(process: Process, url: str, audio: Path, **settings: Any) -> str:
    answer = process(url, audio, settings, async_process=True)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["status"], body["result"], body["error"]) == ("queued", None, None)
    id: str = body["job_id"]
    return id


def get_job(url: str, id: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/v1/jobs/{id}", timeout=30)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def ended(url: str, id: str) -> dict[str, Any]:
    eventually(lambda: get_job(url, id)["ended_at"] is not None, within_s=120)
    return get_job(url, id)


def kill(deployment: str) -> None:
    for pid in replica_pids(APP, deployment):
        os.kill(pid, signal.SIGKILL)


def words(body: dict[str, Any]) -> Any:
    return body["result"]["tra"]


def test_a_job_has_the_result_of_a_synchronous_request(
    service: str, process: Process, clip: Path
) -> None:
    waited = process(service, clip, {}).json()
    done = ended(service, submit(process, service, clip))
    assert (done["status"], done["attempts"]) == ("completed", 1)
    assert words(done) == words(waited)


def test_bad_audio_fails_at_the_first_attempt(service: str, process: Process) -> None:
    answer = process(service, b"this is no audio" * 100, {}, async_process=True)
    failed = ended(service, answer.json()["job_id"])
    assert (failed["status"], failed["code"], failed["attempts"]) == (
        "failed",
        "unsupported_audio",
        1,
    )


def test_a_running_job_reports_its_progress(
    service: str, process: Process, meeting: Path, tmp_path: Path
) -> None:
    audio = decode(meeting.read_bytes(), keep_channels=False, max_seconds=1e4, max_channels=1)
    half_an_hour = tmp_path / "long.wav"
    half_an_hour.write_bytes(wav(np.tile(to_s16(audio.mono[::2]), 3), 8000))
    id = submit(process, service, half_an_hour)
    eventually(lambda: (get_job(service, id)["progress"] or {}).get("seconds_done", 0) > 0)
    assert get_job(service, id)["progress"]["stage"] == "transcribe"
    httpx.delete(f"{service}/v1/jobs/{id}", timeout=30)


def test_cancelling_a_job_frees_the_engine(service: str, process: Process, meeting: Path) -> None:
    id = submit(process, service, meeting)
    eventually(lambda: in_use(service, "demo-vosk") > 0)
    answer = httpx.delete(f"{service}/v1/jobs/{id}", timeout=30)
    assert answer.json()["status"] == "cancelled"
    eventually(lambda: in_use(service, "demo-vosk") == 0, within_s=20)
    assert get_job(service, id)["status"] == "cancelled"


def test_queued_jobs_do_not_delay_a_synchronous_request(
    service: str, process: Process, meeting: Path, clip: Path
) -> None:
    """The only engine is busy with a long job and more are queued: the request interrupts it."""
    ids = [submit(process, service, meeting) for _ in range(3)]
    eventually(lambda: in_use(service, "demo-vosk") > 0)
    running = next(id for id in ids if get_job(service, id)["status"] == "processing")
    assert process(service, clip, {}).status_code == 200
    assert get_job(service, running)["status"] == "processing"
    for id in ids[1:]:
        httpx.delete(f"{service}/v1/jobs/{id}", timeout=30)
    done = ended(service, ids[0])
    assert (done["status"], done["attempts"]) == ("completed", 1)
    assert done["result"]["tra"]["segments"][-1]["end"] > 500


def test_runners_follow_the_backlog_apart_from_the_models(
    service: str, process: Process, meeting: Path
) -> None:
    ids = [submit(process, service, meeting) for _ in range(6)]
    eventually(lambda: running(APP, "JobRunner") == 2)
    assert running(APP, "OnnxAsr") == 1
    for id in ids:
        httpx.delete(f"{service}/v1/jobs/{id}", timeout=30)
    eventually(lambda: running(APP, "JobRunner") == 1)


def test_a_job_outlives_the_runner_that_was_killed_under_it(
    service: str, process: Process, meeting: Path
) -> None:
    id = submit(process, service, meeting)
    eventually(lambda: in_use(service, "demo-vosk") > 0)
    kill("JobRunner")
    done = ended(service, id)
    assert (done["status"], done["attempts"]) == ("completed", 2)
    assert words(done)["segments"][-1]["end"] > 500


def test_an_accepted_job_outlives_the_ingress(service: str, process: Process, clip: Path) -> None:
    id = submit(process, service, clip)
    kill("Ingress")

    def back() -> bool:
        try:
            return get_job(service, id)["status"] == "completed"
        except (AssertionError, httpx.HTTPError):
            return False

    eventually(back)


def test_forty_jobs_under_random_kills_are_each_done_once(
    service: str, process: Process, demo_audio: Path
) -> None:
    """Clients repeat unanswered requests with the same key."""
    clips = sorted((demo_audio / "heldout").glob("en-*.opus"))[:5]
    expected = [words(process(service, clip, {}).json()) for clip in clips]
    chance = random.Random(2)
    over = threading.Event()

    def killing() -> None:
        victims = 2 * ["JobRunner", "Ingress", "OnnxAsr"]
        chance.shuffle(victims)
        while victims and not over.wait(chance.uniform(0.5, 1.5)):
            if all(replica_pids(APP, deployment) for deployment in victims):
                kill(victims.pop())

    def persist(ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        deadline = time.monotonic() + 90
        while True:
            try:
                answer = ask()
                if answer.status_code == 200:
                    body: dict[str, Any] = answer.json()
                    return body
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def one(number: int) -> tuple[str, dict[str, Any]]:
        key = f"chaos-{number}"
        request = {"async_process": True, "idempotency_key": key}
        clip = clips[number % len(clips)]
        id = persist(lambda: process(service, clip, {}, **request))["job_id"]
        while True:
            body = persist(lambda: httpx.get(f"{service}/v1/jobs/{id}", timeout=10))
            if body["ended_at"] is not None:
                return id, body
            time.sleep(0.5)

    killer = threading.Thread(target=killing)
    killer.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(one, range(40)))
    finally:
        over.set()
        killer.join()
    assert len({id for id, _ in done}) == 40
    for number, (id, body) in enumerate(done):
        assert body["status"] == "completed", body["error"]
        assert words(body) == expected[number % len(clips)]
        assert persist(lambda id=id: httpx.get(f"{service}/v1/jobs/{id}", timeout=10)) == body


def test_a_service_that_is_stopped_leaves_no_job_behind(
    application: Service,
    demo_args: dict[str, Any],
    process: Process,
    meeting: Path,
    tmp_path: Path,
) -> None:
    """Its jobs are done or queued; no lease has to expire."""
    with application("brief", args_of(demo_args, tmp_path)) as url:
        ids = [submit(process, url, meeting) for _ in range(2)]
        eventually(lambda: get_job(url, ids[0])["status"] == "processing")
    store = SqlJobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    jobs = [store.find("", id) for id in ids]
    store.close()
    assert all(job is not None and job.state in ("queued", "completed") for job in jobs)
