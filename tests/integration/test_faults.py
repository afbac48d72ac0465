"""What a user sees when a replica dies, a file is hostile, a limit is met or a client goes away."""

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import threading
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from configs.catalogue import Catalogue, Source
from configs.engine_settings import ModelSettings
from configs.settings import SpeechArgs
from deployments.onnx_asr import OnnxAsr
from deployments.runtime.model_access import ModelFiles
from deployments.runtime.model_check import not_loadable
from graphs.speech import InvalidArguments, build
from tests.integration.conftest import Service, living_actors

Process = Callable[..., httpx.Response]


def replica_pids(app: str, deployment: str) -> set[int]:
    """Process ids of the living replicas of a deployment."""
    prefix = f"SERVE_REPLICA::{app}#{deployment}#"
    return {a.pid for a in living_actors() if a.name.startswith(prefix) and a.pid}


def eventually(condition: Callable[[], bool], within_s: float = 60) -> None:
    """Wait for a state that the service must reach by itself."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the service did not get there"
        time.sleep(0.2)


def in_use(url: str, model: str) -> int:
    """How many calls the replicas of a model work on."""
    stats = httpx.get(f"{url}/cache/stats", timeout=30).json()
    return sum(entry["in_use"] for entry in stats if entry["model_name"] == model)


def silent_wav(seconds: float, rate: int = 8000) -> bytes:
    """Long audio from few bytes."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(rate)
        file.writeframes(b"\x80" * round(seconds * rate))
    return buffer.getvalue()


def fail_to_allocate() -> None:
    """Let the next window that the Whisper replica of the demo encodes meet an out-of-memory."""

    def inject(_: Any) -> None:
        from engines.whisper.finite import FiniteWhisper

        encode = FiniteWhisper.encode

        def fail(*_: Any) -> None:
            FiniteWhisper.encode = encode  # type: ignore[method-assign]
            raise RuntimeError("CUDA failed with error out of memory")

        FiniteWhisper.encode = fail  # type: ignore[method-assign,assignment]

    (name,) = [
        a.name for a in living_actors() if a.name.startswith("SERVE_REPLICA::speech#Whisper#")
    ]
    ray.get(ray.get_actor(name, namespace="serve").__ray_call__.remote(inject))


@pytest.fixture(scope="module")
def meeting(demo_audio: Path) -> Path:
    """Ten minutes of speech: work that lasts."""
    return demo_audio / "meeting-10min.opus"


@pytest.fixture(scope="module")
def dialogue(demo_audio: Path) -> Path:
    return demo_audio / "dialogue-en.flac"


def test_a_recogniser_killed_under_a_request_is_replaced_and_the_request_is_answered(
    demo: str, process: Process, meeting: Path
) -> None:
    before = replica_pids("speech", "Whisper")
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(process, demo, meeting, {})
        eventually(lambda: in_use(demo, "demo-whisper") > 0)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        answer = request.result()
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"]["tra"]["segments"][-1]["end"] > 500
    assert not before & replica_pids("speech", "Whisper")


def test_an_out_of_memory_is_answered_with_503_and_the_replica_serves_on(
    demo: str, process: Process, dialogue: Path
) -> None:
    before = replica_pids("speech", "Whisper")
    audio = dialogue.read_bytes()
    answers = []
    for path, field in (
        ("/v1/process", "audio"),
        ("/v1/audio/transcriptions", "file"),
        ("/transcribe", "audio_file"),
    ):
        for shortage in (True, False):
            if shortage:
                fail_to_allocate()
            url = f"{demo}{path}"
            answers.append(httpx.post(url, files={field: ("a.flac", audio)}, timeout=120))
    assert [a.status_code for a in answers] == [503, 200] * 3, [a.text for a in answers]
    assert [a.headers.get("retry-after") for a in answers] == ["5", None] * 3
    v1, openai, asr = [answer.json() for answer in answers[::2]]
    assert v1["code"] == openai["error"]["code"] == "out_of_memory"
    assert v1["detail"] == "the memory does not suffice for model demo-whisper now"
    assert v1["detail"] in asr["detail"]
    assert replica_pids("speech", "Whisper") == before


def test_a_job_that_meets_an_out_of_memory_is_attempted_again(
    demo: str, process: Process, dialogue: Path
) -> None:
    fail_to_allocate()
    job = process(demo, dialogue, {}, async_process=True).json()["job_id"]

    def ended() -> bool:
        body = httpx.get(f"{demo}/v1/jobs/{job}", timeout=30).json()
        assert body["status"] != "failed", body
        return bool(body["status"] == "completed")

    eventually(ended)


def test_the_models_are_listed_while_a_deployment_has_no_replica(demo: str) -> None:
    before = replica_pids("speech", "Whisper")
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def listed() -> bool:
        answer = httpx.get(f"{demo}/v1/models", timeout=30)
        assert answer.status_code == 200, answer.text
        return bool(replica_pids("speech", "Whisper") - before)

    eventually(listed)


def test_a_file_that_kills_the_decoder_is_refused_and_the_service_heals(
    demo: str, process: Process, dialogue: Path
) -> None:
    """Killing every decoder shortly after it came up stands for a file that makes it crash."""
    long_to_decode = silent_wav(3 * 3600)
    done = threading.Event()

    def kill_every_decoder() -> None:
        while not done.is_set():
            alive = replica_pids("speech", "Decoder")
            done.wait(0.3)
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_every_decoder)
    killer.start()
    try:
        answer = process(demo, long_to_decode, {})
    finally:
        done.set()
        killer.join()
    assert answer.status_code == 415, answer.text
    assert answer.json()["code"] == "unsupported_audio"
    eventually(lambda: process(demo, dialogue, {}).status_code == 200)


@pytest.mark.parametrize(
    ("path", "part", "fields"),
    [
        ("/v1/process", "audio", {"request_json": json.dumps({"settings": {}})}),
        ("/v1/audio/transcriptions", "file", {"model": "demo-whisper", "stream": "true"}),
    ],
    ids=["request", "stream"],
)
def test_a_client_that_goes_away_frees_the_engine(
    demo: str, meeting: Path, path: str, part: str, fields: dict[str, str]
) -> None:
    audio = meeting.read_bytes()

    async def leave_while_it_works() -> None:
        async with httpx.AsyncClient(timeout=240) as client:
            request = asyncio.create_task(
                client.post(f"{demo}{path}", files={part: ("audio", audio)}, data=fields)
            )
            await asyncio.to_thread(eventually, lambda: in_use(demo, "demo-whisper") > 0)
            request.cancel()

    asyncio.run(leave_while_it_works())
    eventually(lambda: in_use(demo, "demo-whisper") == 0, within_s=10)


@pytest.mark.parametrize(
    ("audio", "status", "code"),
    [
        (b"", 400, "empty_audio"),
        (b"this is no audio at all" * 100, 415, "unsupported_audio"),
        (silent_wav(0.0), 400, "empty_audio"),
    ],
    ids=["empty", "garbage", "no samples"],
)
def test_bad_audio_gets_a_clear_error(
    demo: str, process: Process, audio: bytes, status: int, code: str
) -> None:
    answer = process(demo, audio, {})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"tra": {"model": "whisper-imaginary"}}, 422, "model_not_found"),
        ({"tra": {"language": "klingon"}}, 422, "invalid_request"),
        ({"tra": {"beam_size": 11}}, 422, "invalid_request"),
    ],
    ids=["unknown model", "unknown language", "beam out of range"],
)
def test_settings_that_cannot_be_are_refused(
    demo: str, process: Process, dialogue: Path, settings: dict[str, Any], status: int, code: str
) -> None:
    answer = process(demo, dialogue, settings)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.fixture(scope="module")
def small(application: Service, demo_args: dict[str, Any]) -> Any:
    """A graph of OnnxAsr alone with low limits."""
    args = {
        "offline": True,
        "ingress": {
            **demo_args["ingress"],
            "default_transcriber": "demo-vosk",
            "max_upload_bytes": 4 * 1024**2,
            "max_concurrent_requests": 2,
        },
        "decoder": {**demo_args["decoder"], "max_seconds": 900, "max_channels": 2},
        "onnx_asr": {**demo_args["onnx_asr"], "lifecycle": {"max_queue": 1}, "timeout_s": 1.0},
    }
    with application("small", args) as url:
        yield url


def test_an_upload_over_the_byte_limit_is_refused(small: str, process: Process) -> None:
    answer = process(small, silent_wav(600), {})
    assert (answer.status_code, answer.json()["code"]) == (413, "audio_too_large")


def test_audio_over_the_limit_in_seconds_is_refused(small: str, process: Process) -> None:
    answer = process(small, silent_wav(3600, rate=1000), {})
    assert (answer.status_code, answer.json()["code"]) == (413, "audio_too_long")
    assert "900" in answer.json()["detail"]


def test_a_task_that_this_graph_does_not_run_is_refused(
    small: str, process: Process, dialogue: Path
) -> None:
    answer = process(small, dialogue, {"tasks": ["diarization"]})
    assert answer.status_code == 422


def test_work_beyond_its_deadline_ends_in_504_and_beyond_the_queue_in_503(
    small: str, process: Process, meeting: Path
) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: process(small, meeting, {}), range(6)))
    seen = {(a.status_code, a.json().get("code")) for a in answers}
    assert seen <= {(200, None), (503, "overloaded"), (504, "deadline_exceeded")}
    refused = [a for a in answers if a.status_code == 503]
    assert refused, "two run or wait, the others are refused"
    assert all(float(a.headers["Retry-After"]) >= 1 for a in refused)
    assert any(a.status_code == 504 for a in answers)


def test_a_request_for_a_model_without_a_replica_gets_503_and_does_not_hang(
    cluster: str, demo_args: dict[str, Any], process: Process, dialogue: Path
) -> None:
    soon = {"lifecycle": {"drain_timeout_s": 1}}  # Serve waits so long for one that never started
    more = {"resources": {"num_gpus": 3}}  # than a node has
    args = {
        "offline": True,
        "ingress": {**demo_args["ingress"], **soon},
        "decoder": {**demo_args["decoder"], **soon},
        "whisper": {**demo_args["whisper"], **soon, **more},
    }
    target = serve.RunTarget(build(SpeechArgs(**args)), name="gap", route_prefix="/gap")
    serve.run_many([target], wait_for_applications_running=False)
    try:
        eventually(lambda: httpx.get(f"{cluster}/gap/health", timeout=30).status_code == 200)
        answer = process(f"{cluster}/gap", dialogue, {})
        assert (answer.status_code, answer.json()["code"]) == (503, "model_unavailable")
        assert answer.json()["detail"] == "no replica of Whisper runs"
        assert float(answer.headers["Retry-After"]) >= 1
    finally:
        serve.delete("gap")


def test_a_version_whose_model_is_missing_on_the_nodes_is_not_built(
    cluster: str, demo_args: dict[str, Any]
) -> None:
    args = {**demo_args, "whisper": {**demo_args["whisper"], "default_model": "whisper-tiny"}}
    args["ingress"] = {**args["ingress"], "default_transcriber": "whisper-tiny"}
    with pytest.raises(InvalidArguments) as error:
        build(SpeechArgs(**args))
    missing = "args.whisper: model whisper-tiny is not on this server"
    assert all(reason.startswith(missing) for reason in error.value.reasons)
    assert ["(node " in reason for reason in error.value.reasons] == [False, True, True]


def test_a_model_that_does_not_load_is_found_without_a_replica(
    cluster: str, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "models/demo/demo-vosk", tmp_path / "demo-vosk")
    source = Source(path=str(tmp_path / "demo-vosk"))
    entries = [m.model_copy(update={"source": source}) for m in Catalogue.load().models]
    catalogue = Catalogue(models=tuple(m for m in entries if m.id == "demo-vosk"))
    files = ModelFiles(catalogue, tmp_path, offline=True)
    settings = ModelSettings.model_validate(
        {"default_model": "demo-vosk", "device": "cuda", "resources": {"num_gpus": 1}}
    )
    assert not_loadable({"onnx_asr": (OnnxAsr, settings)}, files) == []
    (tmp_path / "demo-vosk" / "model.onnx").write_bytes(b"no network")
    (problem,) = not_loadable({"onnx_asr": (OnnxAsr, settings)}, files)
    assert problem.startswith("onnx_asr: ")
    assert f"{tmp_path}/demo-vosk/model.onnx" in problem

    class NoRoom:
        def __init__(self, *_: object) -> None:
            raise MemoryError

    assert not_loadable({"onnx_asr": (NoRoom, settings)}, files) == []
