"""``WS /v1/realtime`` as OpenAI's own clients use it, and the demo models behind it."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai.types.realtime as rt
import pytest
import soxr
from openai import OpenAI

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed
from tests.unit.api.openai.realtime_client import (
    FRAME,
    LOGPROBS,
    QUERY,
    RAW,
    TRANSCRIPTION,
    Event,
    base64_of,
    feed,
    items,
    kinds,
    next_event,
    sdk,
    session,
    transcripts,
    until,
)
from tests.unit.heldout import clips, conversation, wer
from tests.unit.live_audio import exact, frames, pcm, silence, speak
from tests.unit.live_service import (
    STREAMING,
    UTTERANCES,
    WHISPER,
    LiveService,
)


def assert_sound(received: list[Event]) -> None:
    """What holds for every conversation."""
    ids = [event.event_id for event in received]
    assert len(set(ids)) == len(ids)
    committed = [e for e in received if isinstance(e, rt.InputAudioBufferCommittedEvent)]
    order = [None, *(event.item_id for event in committed)]
    assert [event.previous_item_id for event in committed] == order[:-1]
    for kind in (rt.ConversationItemAdded, rt.ConversationItemDone):
        added = [event for event in received if isinstance(event, kind)]
        assert [(e.previous_item_id, e.item.id) for e in added] == list(itertools.pairwise(order))
        assert {(e.item.type, e.item.role, e.item.status) for e in added} == {  # type: ignore[union-attr]
            ("message", "user", "completed")
        }
    for event in received:
        if isinstance(event, rt.ConversationItemInputAudioTranscriptionCompletedEvent):
            deltas = [
                e.delta
                for e in received
                if isinstance(e, rt.ConversationItemInputAudioTranscriptionDeltaEvent)
                and e.item_id == event.item_id
            ]
            assert "".join(map(str, deltas)) == event.transcript


# OpenAI's clients


async def test_a_session_is_created_with_its_settings(quick: LiveService) -> None:
    async with (
        sdk(quick) as client,
        client.realtime.connect(extra_query=QUERY, model="whisper-1") as connection,
    ):
        created = await next_event(connection)
    assert isinstance(created.session, rt.RealtimeTranscriptionSessionCreateRequest)
    assert created.session.to_dict() == {
        "id": created.session.id,  # type: ignore[attr-defined]
        "object": "realtime.transcription_session",
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24_000},
                "transcription": {"model": "whisper-1", "language": None, "prompt": ""},
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 500,
                },
                "noise_reduction": None,
            }
        },
        "include": None,
    }


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES])
async def test_voice_activity_detection_makes_items_of_speech(
    quick: LiveService, model: str
) -> None:
    async with session(quick, transcription={"model": model}) as connection:
        audio = exact(silence(1), speak(1, 2, 3), silence(1), speak(4), silence(1))
        await feed(connection, audio)
        received = await items(connection, 2)
    assert_sound(received)
    assert transcripts(received) == ["1 2 3", "4"]
    first = next(e for e in received if e.type.endswith("speech_started")).item_id
    about = [e for e in received if getattr(e, "item_id", None) == first]
    assert [event.type for event in about if not event.type.endswith("delta")] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        f"{TRANSCRIPTION}.completed",
    ]
    started, stopped = (
        [e for e in received if e.type == f"input_audio_buffer.speech_{what}"]
        for what in ("started", "stopped")
    )
    assert started[0].audio_start_ms == pytest.approx(1000 - 300, abs=33)
    assert stopped[0].audio_end_ms == pytest.approx(2100 + 250, abs=65)
    (usage, *_) = [e.usage for e in received if hasattr(e, "usage")]
    seconds = (stopped[0].audio_end_ms - started[0].audio_start_ms) / 1000
    assert (usage.type, usage.seconds) == ("duration", pytest.approx(seconds, abs=0.002))


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES])
async def test_words_come_before_the_client_commits(quick: LiveService, model: str) -> None:
    quick.models.unstable = True
    async with session(quick, turn_detection=None, transcription={"model": model}) as connection:
        await feed(connection, exact(speak(*range(1, 20)), silence(2), speak(20)))
        spoken: list[Event] = []
        while "".join(e.delta for e in spoken).count(" ") < 18:
            spoken.append(await next_event(connection))
        await connection.input_audio_buffer.commit()
        received = spoken + await items(connection, 1)
    assert_sound(received)
    assert set(kinds(spoken)) == {f"{TRANSCRIPTION}.delta"}
    assert transcripts(received) == [" ".join(map(str, range(1, 21)))]
    assert "input_audio_buffer.speech_started" not in kinds(received)


async def test_a_commit_is_an_item_also_without_words(quick: LiveService) -> None:
    async with session(quick, turn_detection=None) as connection:
        for audio in (silence(1), speak(1), silence(0.1)):
            await feed(connection, exact(audio))
            await connection.input_audio_buffer.commit()
        received = await items(connection, 3)
    assert_sound(received)
    assert transcripts(received) == ["", "1", ""]
    assert [e.usage.seconds for e in received if hasattr(e, "usage")] == [1.0, 0.4, 0.1]


async def test_a_client_may_commit_before_a_pause_does(quick: LiveService) -> None:
    async with session(quick) as connection:
        await feed(connection, exact(speak(1, 2)))
        await connection.input_audio_buffer.commit()
        await feed(connection, exact(speak(3), silence(1)))
        received = await items(connection, 2)
    assert_sound(received)
    assert transcripts(received) == ["1 2", "3"]


async def test_what_is_cleared_becomes_no_item(quick: LiveService) -> None:
    async with session(quick, turn_detection=None) as connection:
        await connection.input_audio_buffer.clear()
        assert isinstance(await next_event(connection), rt.InputAudioBufferClearedEvent)
        await feed(connection, exact(speak(1, 2, 3), silence(2)))
        before = await until(connection, f"{TRANSCRIPTION}.delta")
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")
        await feed(connection, exact(speak(4)))
        await connection.input_audio_buffer.commit()
        received = await items(connection, 1)
    assert_sound(received)
    assert transcripts(received) == ["4"]
    assert received[0].item_id != before[-1].item_id


async def test_the_synchronous_client_and_its_handlers(quick: LiveService) -> None:
    def converse() -> list[Event]:
        received: list[Event] = []
        with (
            OpenAI(api_key="none", base_url=f"http://127.0.0.1:{quick.port}/v1") as client,
            client.realtime.connect(extra_query=QUERY) as connection,
        ):
            connection.session.update(
                session={
                    "type": "transcription",
                    "audio": {"input": {"format": RAW}},  # type: ignore[typeddict-item]
                }
            )
            for frame in frames(exact(speak(1, 2), silence(1)), FRAME):
                connection.input_audio_buffer.append(audio=base64_of(frame))
            connection.on("event", received.append)
            connection.on(f"{TRANSCRIPTION}.completed", lambda event: connection.close())
            connection.dispatch_events()
        return received

    received = await asyncio.to_thread(converse)
    assert kinds(received[:2]) == ["session.created", "session.updated"]
    assert_sound(received)
    assert transcripts(received) == ["1 2"]


async def test_an_item_that_cannot_be_recognised_fails_and_the_session_goes_on(
    quick: LiveService,
) -> None:
    quick.models.failure = EngineFailed("broken")
    async with session(quick, transcription={"model": UTTERANCES}) as connection:
        await feed(connection, exact(speak(1), silence(1)))
        failed = (await until(connection, f"{TRANSCRIPTION}.failed"))[-1]
        quick.models.failure = None
        await feed(connection, exact(speak(2), silence(1)))
        received = await items(connection, 1)
    assert isinstance(failed, rt.ConversationItemInputAudioTranscriptionFailedEvent)
    assert failed.error.to_dict() == {
        "type": "server_error",
        "code": "engine_failed",
        "message": "broken",
        "param": None,
    }
    assert transcripts(received) == ["2"]
    assert [e.previous_item_id for e in received if e.type.endswith("committed")] == [
        failed.item_id
    ]


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Any]:
    """Sentences in two languages."""
    return clips(demo_audio, count=2)


def errors(expected: list[Any], recognised: list[str]) -> float:
    return wer(" ".join(c.text for c in expected), " ".join(recognised))


def telephone(samples: Samples, codec: str) -> bytes:
    """G.711 as FFmpeg makes it."""
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format = 8000, "mono", "s16"
    narrow = np.frombuffer(pcm(soxr.resample(samples, SAMPLE_RATE, 8000)), "<i2")
    frame = av.AudioFrame.from_ndarray(narrow.reshape(1, -1), "s16", "mono")
    frame.sample_rate = 8000
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))


# The demo models


@pytest.mark.parametrize(
    ("format", "bound"),
    [
        ({"type": "audio/pcm", "rate": 16_000}, 0.3),
        ({"type": "audio/pcm", "rate": 24_000}, 0.3),
        ({"type": "audio/pcm", "rate": 48_000}, 0.3),
        ({"type": "audio/pcmu"}, 0.45),
        ({"type": "audio/pcma"}, 0.45),
    ],
    ids=lambda given: str(given),
)
async def test_every_format_is_recognised(
    demo: LiveService, spoken: list[Any], format: dict[str, Any], bound: float
) -> None:
    speech = conversation(spoken, seconds=1)
    if format["type"] == "audio/pcm":
        audio = pcm(soxr.resample(speech, SAMPLE_RATE, format["rate"]))
    else:
        audio = telephone(
            speech, {"audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}[format["type"]]
        )
    async with session(demo, format=format, turn_detection=None) as connection:
        await feed(connection, audio, 4801)
        await connection.input_audio_buffer.commit()
        received = await items(connection, 1)
    assert_sound(received)
    assert errors(spoken, transcripts(received)) < bound
    (usage,) = [event.usage for event in received if hasattr(event, "usage")]
    assert usage.seconds == pytest.approx(len(speech) / SAMPLE_RATE, abs=0.001)


@pytest.mark.parametrize("model", [WHISPER, STREAMING])
async def test_log_probabilities_where_the_model_has_them(
    demo: LiveService, spoken: list[Any], model: str
) -> None:
    wanted = {"include": [LOGPROBS], "transcription": {"model": model}}
    async with session(demo, **wanted) as connection:
        await feed(connection, pcm(spoken[2].samples, silence(1)))
        received = await items(connection, 1)
    completed = received[-1]
    deltas = [event for event in received if event.type == f"{TRANSCRIPTION}.delta"]
    if model == STREAMING:
        assert [event.logprobs for event in (*deltas, completed)] == [None] * (len(deltas) + 1)
        return
    tokens = [one.token for one in completed.logprobs]
    assert "".join(tokens).strip() == completed.transcript
    assert [one.token for event in deltas for one in event.logprobs] == tokens
    assert all(one.logprob <= 0 for one in completed.logprobs)
