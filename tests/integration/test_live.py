"""Live sockets of a served graph: every dialect, refusal, resume, drain, an hour, and a kill."""

import asyncio
import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soxr
from ray import serve
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from clients.stream_client import ServerBusy, StreamClient
from configs.settings import SpeechArgs
from graphs.speech import build
from speech.audio import SAMPLE_RATE, Samples
from tests.integration.conftest import Service
from tests.integration.test_faults import eventually, replica_pids
from tests.unit.heldout import clips, load, wer

FRAME = SAMPLE_RATE // 10 * 2
"""Bytes of 0.1 s."""
LIVE_ONLY = {
    "offline": True,
    "ingress": {"default_transcriber": "demo-vosk", "resources": {"num_cpus": 0.2}},
    "decoder": {"resources": {"num_cpus": 0.1}},
    "onnx_asr": {"default_model": "demo-vosk", "device": "cpu", "resources": {"num_cpus": 0.5}},
    "live": {"default_model": "demo-vosk-streaming", "device": "cpu"},
}


def with_ingress(**fields: Any) -> dict[str, Any]:
    return LIVE_ONLY | {"ingress": LIVE_ONLY["ingress"] | fields}


def socket_url(url: str, path: str) -> str:
    return url.replace("http://", "ws://") + path


def pcm(samples: Samples, rate: int = SAMPLE_RATE) -> bytes:
    """PCM16 at a rate."""
    resampled = soxr.resample(samples, SAMPLE_RATE, rate) if rate != SAMPLE_RATE else samples
    return (np.clip(resampled, -1, 1) * 32767).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def talk(demo_audio: Path) -> tuple[Samples, str]:
    """Some sentences with pauses, and their text."""
    spoken = clips(demo_audio, count=4)
    pause = np.zeros(SAMPLE_RATE, np.float32)
    samples = np.concatenate([part for clip in spoken for part in (clip.samples, pause)])
    return samples, " ".join(clip.text for clip in spoken)


@pytest.fixture(scope="module")
def live(application: Service) -> Any:
    """A service of live streams, the engine inside the ingress."""
    with application("live", LIVE_ONLY) as url:
        yield url


async def native(url: str, audio: bytes, pace: float | None = None, **wishes: Any) -> list[dict]:
    """All events of a stream; ``pace`` times as fast as spoken, or poured in."""
    events = []
    async with StreamClient(socket_url(url, "/v1/ws"), **wishes) as session:

        async def speak() -> None:
            for first in range(0, len(audio), FRAME):
                await session.send(audio[first : first + FRAME])
                if pace:
                    await asyncio.sleep(0.1 / pace)
            await session.finish()

        speaking = asyncio.create_task(speak())
        async for event in session:
            events.append(event)
        await speaking
    return events


def finals(events: list[dict]) -> list[dict]:
    return [event for event in events if event["type"] == "final" and event["text"]]


def final_text(events: list[dict]) -> str:
    return " ".join(event["text"] for event in finals(events))


async def answers(url: str, *frames: str | bytes) -> list[dict]:
    """All answers of a server to some frames, until it closes."""
    async with connect(url, max_size=None) as socket:
        for frame in frames:
            await socket.send(frame)
        received = [json.loads(text) async for text in socket]
    assert socket.close_code == 1000
    return received


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
async def test_the_native_form_at_any_rate(live: str, talk: tuple[Samples, str], rate: int) -> None:
    samples, text = talk
    events = await native(live, pcm(samples, rate), sample_rate=rate)
    assert wer(text, final_text(events)) < (0.25 if rate == 8000 else 0.15)
    assert events[-1]["type"] == "done"


async def test_the_sherpa_server_socket(live: str, talk: tuple[Samples, str]) -> None:
    samples, text = talk
    received = await answers(
        socket_url(live, "/ws"),
        json.dumps({"config": {"sample_rate": 16000, "wait_null_answers": False}}),
        pcm(samples),
        json.dumps({"eof": 1}),
    )
    assert [answer["last_message"] for answer in received] == [False] * (len(received) - 1) + [True]
    recognised = " ".join(answer["data"]["text"] for answer in received if answer["data"])
    assert wer(text, recognised) < 0.15
    words = [word for answer in received if answer["data"] for word in answer["data"]["result"]]
    assert [w["start"] for w in words] == sorted(w["start"] for w in words)


async def test_the_classic_socket_answers_every_frame(live: str, talk: tuple[Samples, str]) -> None:
    samples, text = talk
    audio = pcm(samples)
    results = []
    async with connect(socket_url(live, "/vosk")) as socket:
        await socket.send(json.dumps({"config": {"sample_rate": 16000}}))
        for first in range(0, len(audio), 8000):
            await socket.send(audio[first : first + 8000])
            results.append(json.loads(await socket.recv()))
        await socket.send(json.dumps({"eof": 1}))
        results.append(json.loads(await socket.recv()))
    assert wer(text, " ".join(r["text"] for r in results if "text" in r)) < 0.15
    assert all(set(r) <= {"partial", "text", "result"} for r in results)


@pytest.mark.parametrize("path", ["/asr/ru/", "/vosk/"])
async def test_clients_with_the_paths_of_vosk_server_pass_the_proxy(live: str, path: str) -> None:
    async with connect(socket_url(live, path)) as socket:
        await socket.send('{"reset" : 1}')
        assert json.loads(await socket.recv()) == {"text": ""}


async def test_the_v1_stream_ends_on_an_empty_frame(live: str, talk: tuple[Samples, str]) -> None:
    samples, text = talk
    received = await answers(
        socket_url(live, "/v1/ws"), json.dumps({"settings": {"tra": {}}}), pcm(samples), b""
    )
    assert wer(text, " ".join(chunk["text"] for chunk in received)) < 0.15
    assert all(chunk["emotional"] is None for chunk in received)


async def test_silence_noise_and_garbage_say_nothing_and_break_nothing(
    live: str, demo_audio: Path
) -> None:
    rng = np.random.default_rng(1)
    quiet = pcm(load(demo_audio / "silence.flac"))
    assert final_text(await native(live, quiet)) == ""
    await native(live, rng.bytes(64_001))
    async with connect(socket_url(live, "/v1/ws")) as socket:
        await socket.send('{"type": "start", "encoding": "mp17"}')
        assert json.loads(await socket.recv())["code"] == "invalid_request"
        await socket.wait_closed()
    assert socket.close_code == 1008


async def test_twenty_minutes_poured_in_do_not_drift(live: str, demo_audio: Path) -> None:
    (clip,) = clips(demo_audio, count=1)[:1]
    minute = np.zeros(60 * SAMPLE_RATE, np.float32)
    minute[SAMPLE_RATE : SAMPLE_RATE + len(clip.samples)] = clip.samples
    events = await native(live, pcm(minute) * 20, partials=False)
    starts = [final["words"][0]["start"] for final in finals(events)]
    assert len(starts) == 20
    assert starts == pytest.approx([starts[0] + 60 * n for n in range(20)], abs=0.05)
    assert len({final["text"] for final in finals(events)}) == 1


async def test_a_full_service_refuses_at_once_and_a_dropped_socket_frees_its_place(
    application: Service, talk: tuple[Samples, str]
) -> None:
    args = with_ingress(sessions={"max_sessions": 1, "retention_s": 0})
    with application("small", args) as url:
        path = socket_url(url, "/v1/ws")
        start = json.dumps({"type": "start"})
        async with connect(path) as socket:
            await socket.send(start)
            await socket.recv()
            with pytest.raises(InvalidStatus) as refused:
                await connect(path)
            assert refused.value.response.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) >= 1
            await socket.send(pcm(talk[0])[:32_000])
            socket.transport.abort()  # as when a cable is pulled
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(ServerBusy):
                    events = await native(url, pcm(talk[0]))
                    break
                await asyncio.sleep(0.2)
        assert finals(events)


async def test_a_dropped_socket_comes_back_to_its_session(
    live: str, talk: tuple[Samples, str]
) -> None:
    audio = pcm(talk[0])
    undisturbed = finals(await native(live, audio))
    half = len(audio) // 2 // FRAME * FRAME
    path = socket_url(live, "/v1/ws")
    async with connect(path) as socket:
        await socket.send(json.dumps({"type": "start"}))
        ready = json.loads(await socket.recv())
        await socket.send(audio[:half])
        first = await _until_progress(socket, half / 32_000)
        socket.transport.abort()
    last = first[-1]
    ended = max((e["end"] for e in finals(first)), default=0.0)
    async with connect(path) as socket:
        resume = {"session": ready["session"], "seq": last["seq"], "from_s": ended}
        await socket.send(json.dumps({"type": "start", "resume": resume}))
        again = json.loads(await socket.recv())
        assert again["resumed"] is True
        assert again["audio_from_s"] == pytest.approx(half / 32_000)
        await socket.send(audio[half:])
        await socket.send(json.dumps({"type": "end"}))
        second = [json.loads(text) async for text in socket]
    both = finals([*first, *second])
    assert [(e["text"], e["start"]) for e in both] == [(e["text"], e["start"]) for e in undisturbed]


async def _until_progress(socket: Any, seconds: float) -> list[dict]:
    events = []
    async for text in socket:
        events.append(json.loads(text))
        last = events[-1]
        if last["type"] == "progress" and last["processed_s"] >= seconds - 1.5:
            return events
    raise AssertionError("the server closed")


@contextlib.asynccontextmanager
async def speaking(
    url: str, audio: bytes, streams: int, pace: float
) -> AsyncIterator[list["asyncio.Task[list[dict]]"]]:
    tasks = [asyncio.create_task(native(url, audio, pace)) for _ in range(streams)]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def essence(events: list[dict]) -> list[str]:
    return [final["text"] for final in finals(events)]


async def test_a_killed_ingress_loses_and_doubles_no_final(
    application: Service, talk: tuple[Samples, str]
) -> None:
    audio = pcm(talk[0])
    with application("mortal", LIVE_ONLY) as url:
        undisturbed = essence(await native(url, audio))
        (pid,) = await asyncio.to_thread(replica_pids, "mortal", "Ingress")
        async with speaking(url, audio, streams=4, pace=2) as tasks:
            await asyncio.sleep(len(audio) / 32_000 / 2 / 2)
            os.kill(pid, signal.SIGKILL)
            for events in await asyncio.gather(*tasks):
                assert essence(events) == undisturbed
                assert [e["seq"] for e in events] == sorted({e["seq"] for e in events})
                numbers = [e["utterance"] for e in events if e["type"] == "final"]
                assert numbers == list(range(len(numbers)))


async def test_killed_recognisers_lose_and_double_no_word_of_twenty_streams(
    application: Service, talk: tuple[Samples, str]
) -> None:
    audio = pcm(talk[0])
    replicas = {
        "placement": "replicas",
        "scaling": {"min_replicas": 2, "max_replicas": 2},
        "resources": {"num_cpus": 1},
    }
    with application("lanes", LIVE_ONLY | {"live": LIVE_ONLY["live"] | replicas}) as url:
        undisturbed = essence(await native(url, audio))
        assert undisturbed
        stats = (await asyncio.to_thread(httpx.get, f"{url}/cache/stats", timeout=30)).json()
        live = [(r["model_name"], r["device"]) for r in stats if r["task_type"] == "live"]
        assert live == [("demo-vosk-streaming", "cpu")] * 2
        pids = await asyncio.to_thread(replica_pids, "lanes", "Live")
        async with speaking(url, audio, streams=20, pace=1) as tasks:
            await asyncio.sleep(len(audio) / 32_000 / 2)
            os.kill(min(pids), signal.SIGKILL)
            for events in await asyncio.gather(*tasks):
                assert essence(events) == undisturbed
        await asyncio.to_thread(
            eventually, lambda: len(replica_pids("lanes", "Live") - {min(pids)}) == 2
        )


async def test_a_redeployment_closes_with_going_away_after_the_last_finals(
    application: Service, talk: tuple[Samples, str]
) -> None:
    audio = pcm(talk[0])
    with application("drained", LIVE_ONLY) as url:
        undisturbed = essence(await native(url, audio))
        async with connect(socket_url(url, "/v1/ws")) as socket:
            await socket.send(json.dumps({"type": "start"}))
            await socket.recv()
            await socket.send(audio)
            await asyncio.sleep(1)
            changed = with_ingress(max_upload_bytes=10**8)
            redeploying = asyncio.to_thread(
                serve.run,
                build(SpeechArgs(**changed)),
                name="drained",
                route_prefix="/drained",
            )
            redeployment = asyncio.create_task(redeploying)
            events = [json.loads(text) async for text in _until_closed(socket)]
            assert socket.close_code == 1001
            assert essence(events) == undisturbed
            await redeployment
        assert essence(await native(url, audio)) == undisturbed


async def _until_closed(socket: Any) -> AsyncIterator[str]:
    with contextlib.suppress(ConnectionClosed):
        async for text in socket:
            yield text


async def test_the_small_routes_of_the_sherpa_server(live: str) -> None:
    def get(path: str) -> Any:
        with urllib.request.urlopen(live + path, timeout=30) as answer:
            return json.load(answer)

    alive = await asyncio.to_thread(get, "/is_alive")
    assert alive == {"error": False, "error_description": None, "data": "is running"}
