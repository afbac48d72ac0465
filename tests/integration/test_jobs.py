"""Jobs on the running graph: the same answer as for a client who waits, whoever is killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Service
from tests.integration.test_faults import eventually, in_use, replica_pids

Process = Callable[..., httpx.Response]
APP = "jobs"


@pytest.fixture(scope="module")
def service(
    application: Service, demo_args: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Vosk, one runner, and leases so short that a killed runner's job is soon another's."""
    args = {
        "offline": True,
        "ingress": {**demo_args["ingress"], "default_transcriber": "demo-vosk"},
        "decoder": demo_args["decoder"],
        "vosk": {**demo_args["vosk"], "preload": ["demo-vosk"]},
        "jobs": {
            "directory": str(tmp_path_factory.mktemp("jobs")),
            "lease_s": 2,
            "poll_s": 0.1,
            "backoff_s": 0.1,
            "resources": {"num_cpus": 0.1},
            "lifecycle": {"drain_timeout_s": 6},
        },
    }
    with application(APP, args) as url:
        yield url


@pytest.fixture(scope="module")
def meeting(demo_audio: Path) -> Path:
    """Ten minutes of speech: work that lasts."""
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


def look(url: str, id: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/v1/jobs/{id}", timeout=30)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def ended(url: str, id: str) -> dict[str, Any]:
    eventually(lambda: look(url, id)["ended_at"] is not None, within_s=120)
    return look(url, id)


def kill(deployment: str) -> None:
    for pid in replica_pids(APP, deployment):
        os.kill(pid, signal.SIGKILL)


def words(body: dict[str, Any]) -> Any:
    return body["result"]["tra"]


def test_a_job_has_the_result_of_a_client_who_waits(
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


def test_a_running_job_tells_how_far_it_is(service: str, process: Process, meeting: Path) -> None:
    id = submit(process, service, meeting)
    eventually(lambda: (look(service, id)["progress"] or {}).get("seconds_done", 0) > 0)
    assert look(service, id)["progress"]["stage"] == "transcribe"
    httpx.delete(f"{service}/v1/jobs/{id}", timeout=30)


def test_cancelling_a_job_frees_the_engine(service: str, process: Process, meeting: Path) -> None:
    id = submit(process, service, meeting)
    eventually(lambda: in_use(service, "demo-vosk") > 0)
    answer = httpx.delete(f"{service}/v1/jobs/{id}", timeout=30)
    assert answer.json()["status"] == "cancelled"
    eventually(lambda: in_use(service, "demo-vosk") == 0, within_s=20)
    assert look(service, id)["status"] == "cancelled"


def test_jobs_that_wait_do_not_keep_a_client_waiting(
    service: str, process: Process, meeting: Path, clip: Path
) -> None:
    """The only engine is busy with a long job, more wait: a client goes in between."""
    ids = [submit(process, service, meeting) for _ in range(3)]
    eventually(lambda: in_use(service, "demo-vosk") > 0)
    running = next(id for id in ids if look(service, id)["status"] == "processing")
    assert process(service, clip, {}).status_code == 200
    assert look(service, running)["status"] == "processing"
    for id in ids[1:]:
        httpx.delete(f"{service}/v1/jobs/{id}", timeout=30)
    done = ended(service, ids[0])
    assert (done["status"], done["attempts"]) == ("completed", 1)
    assert done["result"]["tra"]["segments"][-1]["end"] > 500


def test_a_job_outlives_the_runner_that_was_killed_under_it(
    service: str, process: Process, meeting: Path
) -> None:
    waited = process(service, meeting, {}).json()
    id = submit(process, service, meeting)
    eventually(lambda: in_use(service, "demo-vosk") > 0)
    kill("JobRunner")
    done = ended(service, id)
    assert (done["status"], done["attempts"]) == ("completed", 2)
    assert words(done) == words(waited)


def test_an_accepted_job_outlives_the_ingress(service: str, process: Process, clip: Path) -> None:
    id = submit(process, service, clip)
    kill("Ingress")

    def back() -> bool:
        try:
            return look(service, id)["status"] == "completed"
        except (AssertionError, httpx.HTTPError):
            return False

    eventually(back)
