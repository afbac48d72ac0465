"""Models scale on their own, replicas spread over nodes and share GPUs, live settings are live."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from configs.settings import SpeechArgs
from graphs.speech import build
from speech.audio import SAMPLE_RATE
from speech.media.decoding import decode
from tests.integration.conftest import Service, living_actors
from tests.integration.test_faults import eventually
from tests.unit.sound_files import to_s16, wav

Process = Callable[..., httpx.Response]
QUICK = {"upscale_delay_s": 0.5, "downscale_delay_s": 2.0, "look_back_period_s": 2.0}


def running(app: str, deployment: str) -> int:
    """Replicas of a deployment that run."""
    states = serve.status().applications[app].deployments[deployment].replica_states
    return states.get("RUNNING", 0)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def elastic(application: Service, demo_args: dict[str, Any]) -> Any:
    """Whisper and OnnxAsr that may each grow to two replicas."""
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1, **QUICK}
    args = {
        "offline": True,
        "ingress": demo_args["ingress"],
        "decoder": demo_args["decoder"],
        "whisper": {**demo_args["whisper"], "scaling": scaling},
        "onnx_asr": {**demo_args["onnx_asr"], "scaling": scaling},
    }
    with application("elastic", args) as url:
        yield url


def test_two_models_autoscale_apart(elastic: str, process: Process, demo_audio: Path) -> None:
    meeting = (demo_audio / "meeting-10min.opus").read_bytes()
    three_minutes = decode(meeting, keep_channels=False, max_seconds=600, max_channels=1).cut(
        0, 180
    )
    audio = wav(to_s16(three_minutes), SAMPLE_RATE)
    with ThreadPoolExecutor(4) as pool:
        requests = [pool.submit(process, elastic, audio, {}) for _ in range(4)]
        eventually(lambda: running("elastic", "Whisper") == 2, within_s=120)
        assert running("elastic", "OnnxAsr") == 1
        assert all(r.result().status_code == 200 for r in requests)
    eventually(lambda: running("elastic", "Whisper") == 1, within_s=120)


def test_fractional_deployments_spread_over_nodes_and_gpus(
    cluster: str, demo_args: dict[str, Any]
) -> None:
    """Two nodes with two GPUs each take four halves of one and four quarters of another."""
    fixed = {"min_replicas": 4, "max_replicas": 4}
    args = {
        "offline": True,
        "ingress": demo_args["ingress"],
        "decoder": demo_args["decoder"],
        "whisper": {
            **demo_args["whisper"],
            "device": "cpu",
            "preload": [],
            "scaling": {**fixed, "max_replicas_per_node": 2},
            "resources": {"num_cpus": 0.1, "num_gpus": 0.5},
        },
        "emotion": {
            **demo_args["emotion"],
            "device": "cpu",
            "preload": [],
            "scaling": {**fixed, "max_replicas_per_node": 2},
            "resources": {"num_cpus": 0.1, "num_gpus": 0.25},
        },
    }
    serve.run(build(SpeechArgs(**args)), name="spread", route_prefix="/spread")
    try:
        gpus = _gpus_of_replicas("spread")
        assert {d: sorted(per_node.values()) for d, per_node in gpus.items() if d != "Decoder"} == {
            "Whisper": [2, 2],
            "Emotion": [2, 2],
        }
        used = sum(node["Resources"].get("GPU", 0) for node in ray.nodes())
        assert used - ray.available_resources()["GPU"] == pytest.approx(4 * 0.5 + 4 * 0.25)
    finally:
        serve.delete("spread")


def _gpus_of_replicas(app: str) -> dict[str, dict[str, int]]:
    """Replicas of each deployment by node, for those that hold a share of a GPU."""
    found: dict[str, dict[str, int]] = {}
    for actor in living_actors(detail=True):
        if not actor.name.startswith(f"SERVE_REPLICA::{app}#"):
            continue
        if actor.required_resources.get("GPU", 0) == 0:
            continue
        deployment = actor.name.split("#")[1]
        nodes = found.setdefault(deployment, {})
        nodes[actor.node_id] = nodes.get(actor.node_id, 0) + 1
    return found


def test_a_model_of_no_replicas_is_ready_and_starts_with_its_first_request(
    application: Service, demo_args: dict[str, Any], process: Process, demo_audio: Path
) -> None:
    args = {
        "offline": True,
        "ingress": {**demo_args["ingress"], "default_transcriber": "demo-vosk"},
        "decoder": demo_args["decoder"],
        "onnx_asr": {
            **demo_args["onnx_asr"],
            "scaling": {"min_replicas": 0, "max_replicas": 1, **QUICK},
        },
    }
    with application("asleep", args) as url:
        answer = httpx.get(f"{url}/ready", timeout=30)
        up = {"Ingress": True, "Decoder": True, "OnnxAsr": False}
        body = {"status": "ready", "deployments": up, "devices": {}}
        assert (answer.status_code, answer.json()) == (200, body)
        assert process(url, demo_audio / "dialogue-en.flac", {}).status_code == 200
        assert httpx.get(f"{url}/ready", timeout=30).json()["deployments"]["OnnxAsr"] is True


def test_an_idle_model_is_unloaded_after_its_ttl_and_comes_back_on_use(
    application: Service, demo_args: dict[str, Any], process: Process, demo_audio: Path
) -> None:
    args = {
        "offline": True,
        "ingress": {**demo_args["ingress"], "default_transcriber": "demo-vosk"},
        "decoder": demo_args["decoder"],
        "onnx_asr": {**demo_args["onnx_asr"], "max_models": 1, "idle_ttl_s": 1.0, "preload": []},
    }

    def loaded(url: str) -> list[str]:
        stats = httpx.get(f"{url}/cache/stats", timeout=30).json()
        return [entry["model_name"] for entry in stats]

    clip = demo_audio / "dialogue-en.flac"
    with application("frugal", args) as url:
        assert loaded(url) == []
        for model in ("demo-vosk", "demo-gigaam"):
            assert process(url, clip, {"tra": {"model": model}}).status_code == 200
        assert "demo-vosk" not in loaded(url), "one model is kept, the least recently used goes"
        eventually(lambda: loaded(url) == [], within_s=30)
        assert process(url, clip, {}).status_code == 200
