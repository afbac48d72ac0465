"""Clients of every kind that are at work when a service is stopped, and what each has to get."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soxr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from speech.audio import SAMPLE_RATE, Samples
from tests.unit.heldout import clips, wer

MAX_WER = 0.35
"""The last word of the audio may be cut, and sentences follow each other without a pause."""
TRANSCRIPTION = "conversation.item.input_audio_transcription"

Text = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Dialect:
    """How a socket begins, and the text that one of its messages adds to the result."""

    path: str
    start: Any
    final: Text
    realtime: bool = False


DIALECTS = {
    "native": Dialect(
        "/v1/ws", {"type": "start"}, lambda m: m["text"] if m["type"] == "final" else ""
    ),
    "v1": Dialect("/v1/ws", {"settings": {"tra": {}}}, lambda m: m["text"]),
    "ws": Dialect(
        "/ws",
        {"config": {"sample_rate": 16000, "wait_null_answers": False}},
        lambda m: m["data"]["text"] if m["data"] else "",
    ),
    "vosk": Dialect("/vosk", {"config": {"sample_rate": 16000}}, lambda m: m.get("text", "")),
    "realtime": Dialect(
        "/v1/realtime?intent=transcription",
        {
            "type": "session.update",
            "session": {
                "type": "transcription",
                "audio": {"input": {"transcription": {"model": "demo-vosk-streaming"}}},
            },
        },
        lambda m: m["transcript"] if m["type"] == f"{TRANSCRIPTION}.completed" else "",
        realtime=True,
    ),
}


@dataclass
class Clients:
    """The work of all clients, begun and not ended."""

    sockets: dict[str, "asyncio.Task[tuple[str, int | None]]"]
    whole: "asyncio.Task[httpx.Response]"
    streamed: "asyncio.Task[list[str]]"
    job: str
    spoken: str

    async def assert_served(self) -> None:
        """Every socket gets its last final and 1001, the requests their complete answers."""
        for name, socket in self.sockets.items():
            text, code = await socket
            assert code == 1001, f"{name}: closed with {code}"
            assert wer(self.spoken, text) < MAX_WER, f"{name}: {text!r}"
        answer = await self.whole
        assert answer.status_code == 200, answer.text
        assert answer.json()["result"]["tra"]["segments"]
        assert "transcript.text.done" in (await self.streamed)[-1]


@asynccontextmanager
async def clients(url: str, demo_audio: Path) -> AsyncIterator[Clients]:
    """All of them at work on a service of ``demo-vosk`` and ``demo-vosk-streaming``."""
    spoken = clips(demo_audio, count=2)
    samples = np.concatenate([clip.samples for clip in spoken])
    meeting = (demo_audio / "meeting-10min.opus").read_bytes()
    async with contextlib.AsyncExitStack() as stack:
        begun = [asyncio.Event() for _ in range(len(DIALECTS) + 1)]
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=240))
        job = await http.post("/v1/process", **_form(meeting, async_process=True))
        assert job.status_code == 200, job.text
        sockets = {
            name: asyncio.create_task(talk(url, dialect, samples, event))
            for (name, dialect), event in zip(DIALECTS.items(), begun, strict=False)
        }
        streamed = asyncio.create_task(_stream(http, meeting, begun[-1]))
        async with asyncio.timeout(120):
            for event in begun:
                await event.wait()
        whole = asyncio.create_task(http.post("/v1/process", **_form(meeting)))
        await asyncio.sleep(1)  # the upload is complete
        work = [*sockets.values(), streamed, whole]
        assert not any(task.done() for task in work)
        try:
            yield Clients(
                sockets, whole, streamed, job.json()["job_id"], " ".join(c.text for c in spoken)
            )
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)


def _form(audio: bytes, **fields: Any) -> dict[str, Any]:
    request = {"settings": {"tasks": ["transcribe"], "tra": {"model": "demo-vosk"}}, **fields}
    return {"files": {"audio": ("audio", audio)}, "data": {"request_json": json.dumps(request)}}


async def _stream(http: httpx.AsyncClient, audio: bytes, begun: asyncio.Event) -> list[str]:
    form = {"model": "demo-vosk", "stream": "true"}
    lines = []
    request = http.stream(
        "POST", "/v1/audio/transcriptions", data=form, files={"file": ("a.opus", audio)}
    )
    async with request as answer:
        assert answer.status_code == 200
        begun.set()
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                lines.append(line)
    return lines


async def talk(
    url: str, dialect: Dialect, samples: Samples, begun: asyncio.Event
) -> tuple[str, int | None]:
    """The text of all finals, and the close code, of a client that has no more to send for now."""
    rate = 24_000 if dialect.realtime else SAMPLE_RATE
    pcm = (np.clip(soxr.resample(samples, SAMPLE_RATE, rate), -1, 1) * 32767).astype("<i2")
    texts = []
    async with connect(url.replace("http", "ws", 1) + dialect.path, max_size=None) as socket:
        await socket.send(json.dumps(dialect.start))
        if dialect.realtime:
            audio = base64.b64encode(pcm.tobytes()).decode()
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        else:
            await socket.send(pcm.tobytes())
        begun.set()
        async for text in _until_closed(socket):
            texts.append(dialect.final(json.loads(text)))
    return " ".join(text for text in texts if text), socket.close_code


async def _until_closed(socket: ClientConnection) -> AsyncIterator[str]:
    with contextlib.suppress(ConnectionClosed):
        async for text in socket:
            assert isinstance(text, str)
            yield text
