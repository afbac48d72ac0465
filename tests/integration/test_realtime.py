"""OpenAI's realtime client against the demo graph: Russian and English, by pause and by commit."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from openai import AsyncOpenAI
from websockets.asyncio.client import connect

from speech.audio import SAMPLE_RATE
from tests.unit.heldout import Clip, clips, wer

RATE = 24_000
FRAME = RATE // 10 * 2
TRANSCRIPTION = "conversation.item.input_audio_transcription"


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Clip]:
    return clips(demo_audio, count=3)


def pcm(of: list[Clip]) -> bytes:
    """The clips with pauses, as OpenAI's clients send audio."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    samples = np.concatenate([part for clip in of for part in (clip.samples, pause)])
    resampled = soxr.resample(samples, SAMPLE_RATE, RATE)
    return (np.clip(resampled, -1, 1) * 32767).astype("<i2").tobytes()


def errors(spoken: list[Clip], text: str) -> float:
    return wer(" ".join(clip.text for clip in spoken), text)


async def conversation(
    url: str, audio: bytes, *, items: int, model: str, **given: Any
) -> list[Any]:
    """All events of a session, spoken five times too fast, until some items are complete."""
    events: list[Any] = []
    async with (
        AsyncOpenAI(api_key="none", base_url=f"{url}/v1") as client,
        client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        settings: Any = {"transcription": {"model": model}, **given}
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": settings}}
        )

        async def speak() -> None:
            for first in range(0, len(audio), FRAME):
                frame = base64.b64encode(audio[first : first + FRAME]).decode()
                await connection.input_audio_buffer.append(audio=frame)
                await asyncio.sleep(0.02)
            if "turn_detection" in given:
                await connection.input_audio_buffer.commit()

        speaking = asyncio.create_task(speak())
        async with asyncio.timeout(120):
            while sum(event.type == f"{TRANSCRIPTION}.completed" for event in events) < items:
                events.append(await connection.recv())
            await speaking
    assert "error" not in [event.type for event in events]
    for completed in events:
        if completed.type == f"{TRANSCRIPTION}.completed":
            about = [e for e in events if getattr(e, "item_id", None) == completed.item_id]
            deltas = [e.delta for e in about if e.type == f"{TRANSCRIPTION}.delta"]
            assert "".join(deltas) == completed.transcript
    return events


def transcripts(events: list[Any]) -> list[str]:
    return [event.transcript for event in events if event.type == f"{TRANSCRIPTION}.completed"]


@pytest.mark.parametrize("model", ["gpt-4o-transcribe", "demo-whisper", "demo-vosk"])
async def test_each_sentence_becomes_an_item(demo: str, spoken: list[Clip], model: str) -> None:
    events = await conversation(demo, pcm(spoken), items=len(spoken), model=model)
    assert errors(spoken, " ".join(transcripts(events))) < 0.25


@pytest.mark.parametrize("model", ["gpt-4o-transcribe", "demo-whisper"])
async def test_what_is_committed_becomes_one_item_of_which_much_is_told_before(
    demo: str, spoken: list[Clip], model: str
) -> None:
    events = await conversation(demo, pcm(spoken), items=1, model=model, turn_detection=None)
    (transcript,) = transcripts(events)
    assert errors(spoken, transcript) < 0.25
    committed = [event.type for event in events].index("input_audio_buffer.committed")
    before = "".join(e.delta for e in events[:committed] if e.type == f"{TRANSCRIPTION}.delta")
    assert len(before) > len(transcript) / 2


async def test_the_subprotocol_of_browsers_passes_the_proxy(demo: str) -> None:
    uri = f"{demo.replace('http://', 'ws://')}/v1/realtime?intent=transcription"
    offered: Any = ["realtime", "openai-insecure-api-key.none"]
    async with connect(uri, subprotocols=offered) as socket:
        assert socket.subprotocol == "realtime"
        assert b"session.created" in await socket.recv(decode=False)
