"""Clients of ``WS /v1/realtime``: OpenAI's own, and plain sockets for what those would not send."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai.types.realtime as rt
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from speech.audio import SAMPLE_RATE
from tests.unit.live_audio import frames
from tests.unit.live_service import (
    WAIT_S,
    Client,
    LiveService,
)

PATH = "/v1/realtime?intent=transcription"
QUERY: dict[str, object] = {"intent": "transcription"}
RAW = {"type": "audio/pcm", "rate": 16_000}
"""A rate at which the fakes get every sample as it was sent."""
FRAME = SAMPLE_RATE // 10 * 2
TRANSCRIPTION = "conversation.item.input_audio_transcription"
LOGPROBS = "item.input_audio_transcription.logprobs"
COMMIT = {"type": "input_audio_buffer.commit"}
Event = Any


def base64_of(audio: bytes) -> str:
    return base64.b64encode(audio).decode()


def append(audio: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": base64_of(audio), **more}


def update(**given: Any) -> dict[str, Any]:
    return {
        "type": "session.update",
        "session": {"type": "transcription", "audio": {"input": given}},
    }


@asynccontextmanager
async def sdk(service: LiveService) -> AsyncIterator[AsyncOpenAI]:
    address = f"127.0.0.1:{service.port}/v1"
    # The second is for the client of the beta, which else asks for TLS.
    base = {"base_url": f"http://{address}", "websocket_base_url": f"ws://{address}"}
    async with AsyncOpenAI(api_key="none", **base) as made:
        yield made


@asynccontextmanager
async def session(
    service: LiveService, *, include: list[Any] | None = None, **given: Any
) -> AsyncIterator[AsyncRealtimeConnection]:
    """A session that takes the audio of the fakes, with settings of its input."""
    async with sdk(service) as client, client.realtime.connect(extra_query=QUERY) as connection:
        assert isinstance(await next_event(connection), rt.SessionCreatedEvent)
        audio: Any = {"input": {"format": RAW, **given}}
        wanted: Any = {"type": "transcription", "audio": audio}
        if include is not None:
            wanted["include"] = include
        await connection.session.update(session=wanted)
        assert isinstance(await next_event(connection), rt.SessionUpdatedEvent)
        yield connection


async def next_event(connection: AsyncRealtimeConnection) -> Event:
    async with asyncio.timeout(WAIT_S):
        return await connection.recv()


async def feed(connection: AsyncRealtimeConnection, audio: bytes, size: int = FRAME) -> None:
    for frame in frames(audio, size):
        await connection.input_audio_buffer.append(audio=base64_of(frame))


async def until(connection: AsyncRealtimeConnection, kind: str, count: int = 1) -> list[Event]:
    """The events up to one of a kind, or the last of several."""
    received: list[Event] = []
    while sum(event.type == kind for event in received) < count:
        received.append(await next_event(connection))
    return received


async def items(connection: AsyncRealtimeConnection, count: int) -> list[Event]:
    return await until(connection, f"{TRANSCRIPTION}.completed", count)


def kinds(received: list[Event]) -> list[str]:
    return [event.type for event in received]


def transcripts(received: list[Event]) -> list[str]:
    return [event.transcript for event in received if event.type == f"{TRANSCRIPTION}.completed"]


@asynccontextmanager
async def socket(service: LiveService, path: str = PATH) -> AsyncIterator[Client]:
    """A plain socket that was greeted."""
    async with service.connect(path) as client:
        assert (await client.receive())["type"] == "session.created"
        yield client


async def answer(client: Client, *messages: Any) -> dict[str, Any]:
    await client.send(*messages)
    return await client.receive()
