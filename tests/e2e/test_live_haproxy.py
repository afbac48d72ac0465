"""Live sockets behind HAProxy, which `serve_config.yaml` runs with."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from clients.stream_client import StreamClient
from deployments.runtime.socket_limits import MAX_MESSAGE_BYTES
from speech.media.headerless import as_wav
from tests.bursts import answers_to_a_burst
from tests.e2e.launched import launched
from tests.e2e.nginx import nginx_before
from tests.hostile_frames import close_code_for_announcing, negotiated_extensions
from tests.unit.heldout import clips

pytestmark = pytest.mark.timeout(600)

SESSIONS = 3
MINUTES = 4
ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3900",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}


@pytest.fixture(scope="module")
def service(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small live graph behind HAProxy; its base URL, and its ingress scales with the sockets."""
    config = yaml.safe_load((repository / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    args = config["applications"][0]["args"]
    config["applications"][0]["args"] = {
        "offline": True,
        "ingress": {
            "default_transcriber": "demo-vosk",
            "resources": {"num_cpus": 0.1},
            "sessions": {"max_sessions": SESSIONS, "retention_s": 0, "max_pending_mb": 2},
            "scaling": {
                "max_replicas": 2,
                "target_ongoing_requests": 1,
                "upscale_delay_s": 0,
                "look_back_period_s": 1,
            },
        },
        "decoder": args["decoder"],
        "onnx_asr": {**args["onnx_asr"], "preload": ["demo-vosk"]},
        "live": args["live"],
    }
    path = tmp_path_factory.mktemp("config") / "live.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "graphs.launch", str(path)]
    with launched(command, repository, ENVIRONMENT) as addresses:
        yield addresses["service"]


@pytest.fixture(scope="module")
def audio(demo_audio: Path) -> bytes:
    """Some seconds of speech as PCM16."""
    joined = np.concatenate([clip.samples for clip in clips(demo_audio, count=2)])
    return (joined * 32767).astype("<i2").tobytes()


def sockets(service: str, path: str) -> str:
    return service.replace("http://", "ws://") + path


async def transcribe(service: str, audio: bytes) -> str:
    async with StreamClient(sockets(service, "/v1/ws")) as session:
        await session.send(audio)
        await session.finish()
        return " ".join([e["text"] async for e in session if e["type"] == "final"])


def test_haproxy_answers(service: str) -> None:
    assert httpx.get(f"{service}/health").json()["status"] == "healthy"


async def test_compression_and_a_large_frame_are_refused(service: str) -> None:
    url = sockets(service, "/v1/ws")
    assert await negotiated_extensions(url) == []
    assert await close_code_for_announcing(url, MAX_MESSAGE_BYTES + 1) == 1009


async def test_a_stream_ends_with_its_finals_and_1000(service: str, audio: bytes) -> None:
    async with connect(sockets(service, "/ws"), max_size=None) as socket:
        await socket.send(json.dumps({"config": {"sample_rate": 16000}}))
        await socket.send(audio)
        await socket.send(json.dumps({"eof": 1}))
        answers = [json.loads(text) async for text in socket]
    assert socket.close_code == 1000
    assert [answer["last_message"] for answer in answers][-1] is True
    assert await transcribe(service, audio)


async def test_a_client_that_pours_is_slowed_down_and_not_refused(
    service: str, audio: bytes
) -> None:
    """Four minutes, several times what may wait in the service."""
    minute = (bytes(32_000) + audio).ljust(60 * 32_000, b"\0")
    url = sockets(service, "/ws?model=demo-vosk-streaming")
    # Its pings would wait behind the audio, and be missed on a slow machine.
    async with connect(url, ping_interval=None) as socket:

        async def pour() -> None:
            for _ in range(MINUTES):
                for first in range(0, len(minute), 64_000):
                    await socket.send(minute[first : first + 64_000])
            await socket.send(json.dumps({"eof": 1}))

        pouring = asyncio.create_task(pour())
        answers = [json.loads(text) async for text in socket]
        await pouring
    assert socket.close_code == 1000
    assert not any(answer["error"] for answer in answers)
    words = answers[-1]["data"].split()
    assert words == words[: len(words) // MINUTES] * MINUTES


async def test_streams_and_large_uploads_pass_nginx_with_the_shipped_config(
    service: str, audio: bytes, repository: Path, tmp_path: Path
) -> None:
    url = "/v1/audio/transcriptions"
    small = as_wav(audio, "pcm_s16le", 16_000, 1)
    large = as_wav(audio + bytes(20_000_000), "pcm_s16le", 16_000, 1)  # nginx takes 1 MB by default
    with nginx_before(service, repository / "configs" / "nginx.conf", tmp_path) as nginx:
        assert await transcribe(nginx, audio) == await transcribe(service, audio)
        async with httpx.AsyncClient(timeout=120) as client:
            direct = await client.post(service + url, files={"file": small})
            proxied = await client.post(nginx + url, files={"file": large})
    assert proxied.json()["text"] == direct.json()["text"] != ""


async def test_a_scale_up_of_the_ingress_cuts_no_live_socket(service: str, audio: bytes) -> None:
    """Every replica of the ingress starts another HAProxy; sockets stay with the old one."""
    expected = await transcribe(service, audio)
    path = sockets(service, "/v1/ws")
    async with connect(path) as early:
        await early.send(json.dumps({"type": "start"}))
        await early.recv()
        await early.send(audio[: len(audio) // 4 * 2])
        refusals = []
        async with asyncio.timeout(120):
            others = []
            while len(others) < SESSIONS + 1:  # more than one replica takes
                try:
                    others.append(await connect(path))
                except InvalidStatus as full:
                    refusals.append(full.response)
                    await asyncio.sleep(0.5)
        assert refusals
        assert {answer.status_code for answer in refusals} == {503}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refusals)
        for other in others:
            await other.close()
        await early.send(audio[len(audio) // 4 * 2 :])
        await early.send(json.dumps({"type": "end"}))
        events = [json.loads(text) async for text in early]
    assert early.close_code == 1000
    assert " ".join(e["text"] for e in events if e["type"] == "final") == expected


async def test_each_client_of_a_burst_is_served_or_rejected_by_the_ingress(service: str) -> None:
    """The last test here: the ingress scales up."""
    answers = await answers_to_a_burst(service, sockets=500, requests=500)
    assert answers["200"] == 500
    assert answers["101"] >= SESSIONS
    assert answers["101"] + answers["503 with Retry-After"] == 500
