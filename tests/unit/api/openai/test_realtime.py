"""``WS /v1/realtime``: OpenAI's own clients, and plain sockets for what those would not send."""

import asyncio
import base64
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai.types.realtime as rt
import pytest
import soxr
from openai import AsyncOpenAI, OpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.openai import realtime as realtime_module
from api.openai.realtime_settings import BetaSessionUpdate, SessionUpdate
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed
from tests.unit.heldout import clips, conversation, wer
from tests.unit.live_service import (
    STREAMING,
    UTTERANCES,
    WAIT_S,
    WHISPER,
    Client,
    Ears,
    LiveService,
    exact,
    frames,
    pcm,
    say,
    serving,
    silence,
)

PATH = "/v1/realtime?intent=transcription"
QUERY: dict[str, object] = {"intent": "transcription"}
RAW = {"type": "audio/pcm", "rate": 16_000}
"""A rate at which the fakes hear every sample as it was sent."""
FRAME = SAMPLE_RATE // 10 * 2
TRANSCRIPTION = "conversation.item.input_audio_transcription"
LOGPROBS = "item.input_audio_transcription.logprobs"
COMMIT = {"type": "input_audio_buffer.commit"}
CLEAR = {"type": "input_audio_buffer.clear"}

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


# OpenAI's clients


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


async def hear(connection: AsyncRealtimeConnection, audio: bytes, size: int = FRAME) -> None:
    for frame in frames(audio, size):
        await connection.input_audio_buffer.append(audio=base64_of(frame))


async def until(connection: AsyncRealtimeConnection, kind: str, count: int = 1) -> list[Event]:
    """The events up to one of a kind, or the last of several."""
    told: list[Event] = []
    while sum(event.type == kind for event in told) < count:
        told.append(await next_event(connection))
    return told


async def items(connection: AsyncRealtimeConnection, count: int) -> list[Event]:
    return await until(connection, f"{TRANSCRIPTION}.completed", count)


def kinds(told: list[Event]) -> list[str]:
    return [event.type for event in told]


def transcripts(told: list[Event]) -> list[str]:
    return [event.transcript for event in told if event.type == f"{TRANSCRIPTION}.completed"]


def assert_sound(told: list[Event]) -> None:
    """What holds for every conversation."""
    ids = [event.event_id for event in told]
    assert len(set(ids)) == len(ids)
    committed = [e for e in told if isinstance(e, rt.InputAudioBufferCommittedEvent)]
    order = [None, *(event.item_id for event in committed)]
    assert [event.previous_item_id for event in committed] == order[:-1]
    for kind in (rt.ConversationItemAdded, rt.ConversationItemDone):
        added = [event for event in told if isinstance(event, kind)]
        assert [(e.previous_item_id, e.item.id) for e in added] == list(itertools.pairwise(order))
        assert {(e.item.type, e.item.role, e.item.status) for e in added} == {  # type: ignore[union-attr]
            ("message", "user", "completed")
        }
    for event in told:
        if isinstance(event, rt.ConversationItemInputAudioTranscriptionCompletedEvent):
            deltas = [
                e.delta
                for e in told
                if isinstance(e, rt.ConversationItemInputAudioTranscriptionDeltaEvent)
                and e.item_id == event.item_id
            ]
            assert "".join(map(str, deltas)) == event.transcript


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
        audio = exact(silence(1), say(1, 2, 3), silence(1), say(4), silence(1))
        await hear(connection, audio)
        told = await items(connection, 2)
    assert_sound(told)
    assert transcripts(told) == ["1 2 3", "4"]
    first = next(e for e in told if e.type.endswith("speech_started")).item_id
    about = [e for e in told if getattr(e, "item_id", None) == first]
    assert [event.type for event in about if not event.type.endswith("delta")] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        f"{TRANSCRIPTION}.completed",
    ]
    started, stopped = (
        [e for e in told if e.type == f"input_audio_buffer.speech_{what}"]
        for what in ("started", "stopped")
    )
    assert started[0].audio_start_ms == pytest.approx(1000 - 300, abs=33)
    assert stopped[0].audio_end_ms == pytest.approx(2100 + 250, abs=65)
    (usage, *_) = [e.usage for e in told if hasattr(e, "usage")]
    seconds = (stopped[0].audio_end_ms - started[0].audio_start_ms) / 1000
    assert (usage.type, usage.seconds) == ("duration", pytest.approx(seconds, abs=0.002))


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES])
async def test_words_come_before_the_client_commits(quick: LiveService, model: str) -> None:
    quick.ears.stumbles = True
    async with session(quick, turn_detection=None, transcription={"model": model}) as connection:
        await hear(connection, exact(say(*range(1, 20)), silence(2), say(20)))
        spoken: list[Event] = []
        while "".join(e.delta for e in spoken).count(" ") < 18:
            spoken.append(await next_event(connection))
        await connection.input_audio_buffer.commit()
        told = spoken + await items(connection, 1)
    assert_sound(told)
    assert set(kinds(spoken)) == {f"{TRANSCRIPTION}.delta"}
    assert transcripts(told) == [" ".join(map(str, range(1, 21)))]
    assert "input_audio_buffer.speech_started" not in kinds(told)


async def test_a_commit_is_an_item_also_without_words(quick: LiveService) -> None:
    async with session(quick, turn_detection=None) as connection:
        for audio in (silence(1), say(1), silence(0.1)):
            await hear(connection, exact(audio))
            await connection.input_audio_buffer.commit()
        told = await items(connection, 3)
    assert_sound(told)
    assert transcripts(told) == ["", "1", ""]
    assert [e.usage.seconds for e in told if hasattr(e, "usage")] == [1.0, 0.4, 0.1]


async def test_a_client_may_commit_before_a_pause_does(quick: LiveService) -> None:
    async with session(quick) as connection:
        await hear(connection, exact(say(1, 2)))
        await connection.input_audio_buffer.commit()
        await hear(connection, exact(say(3), silence(1)))
        told = await items(connection, 2)
    assert_sound(told)
    assert transcripts(told) == ["1 2", "3"]


async def test_what_is_cleared_becomes_no_item(quick: LiveService) -> None:
    async with session(quick, turn_detection=None) as connection:
        await connection.input_audio_buffer.clear()
        assert isinstance(await next_event(connection), rt.InputAudioBufferClearedEvent)
        await hear(connection, exact(say(1, 2, 3), silence(2)))
        before = await until(connection, f"{TRANSCRIPTION}.delta")
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")
        await hear(connection, exact(say(4)))
        await connection.input_audio_buffer.commit()
        told = await items(connection, 1)
    assert_sound(told)
    assert transcripts(told) == ["4"]
    assert told[0].item_id != before[-1].item_id


async def test_the_synchronous_client_and_its_handlers(quick: LiveService) -> None:
    def converse() -> list[Event]:
        told: list[Event] = []
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
            for frame in frames(exact(say(1, 2), silence(1)), FRAME):
                connection.input_audio_buffer.append(audio=base64_of(frame))
            connection.on("event", told.append)
            connection.on(f"{TRANSCRIPTION}.completed", lambda event: connection.close())
            connection.dispatch_events()
        return told

    told = await asyncio.to_thread(converse)
    assert kinds(told[:2]) == ["session.created", "session.updated"]
    assert_sound(told)
    assert transcripts(told) == ["1 2"]


async def test_an_item_that_cannot_be_recognised_fails_and_the_session_goes_on(
    quick: LiveService,
) -> None:
    quick.ears.failure = EngineFailed("broken")
    async with session(quick, transcription={"model": UTTERANCES}) as connection:
        await hear(connection, exact(say(1), silence(1)))
        failed = (await until(connection, f"{TRANSCRIPTION}.failed"))[-1]
        quick.ears.failure = None
        await hear(connection, exact(say(2), silence(1)))
        told = await items(connection, 1)
    assert isinstance(failed, rt.ConversationItemInputAudioTranscriptionFailedEvent)
    assert failed.error.to_dict() == {
        "type": "server_error",
        "code": "engine_failed",
        "message": "broken",
        "param": None,
    }
    assert transcripts(told) == ["2"]
    assert [e.previous_item_id for e in told if e.type.endswith("committed")] == [failed.item_id]


# Settings


@asynccontextmanager
async def socket(service: LiveService, path: str = PATH) -> AsyncIterator[Client]:
    """A plain socket that was greeted."""
    async with service.connect(path) as client:
        assert (await client.receive())["type"] == "session.created"
        yield client


async def answer(client: Client, *messages: Any) -> dict[str, Any]:
    await client.send(*messages)
    return await client.receive()


async def test_an_update_changes_what_it_has_and_shows_what_takes_effect(
    quick: LiveService,
) -> None:
    async with socket(quick) as client:
        await answer(client, update(transcription={"model": "gpt-4o-transcribe", "prompt": "Hi"}))
        session = {"type": "transcription", "include": [LOGPROBS]}
        await answer(client, {"type": "session.update", "session": session})
        told = await answer(
            client,
            update(
                format={"type": "audio/pcmu"},
                transcription={"language": "ru"},
                turn_detection={"type": "semantic_vad", "eagerness": "high"},
                noise_reduction={"type": "near_field"},
            ),
        )
        shown = told["session"]
        assert shown["include"] == [LOGPROBS]
        assert shown["audio"]["input"] == {
            "format": {"type": "audio/pcmu"},
            "transcription": {"model": "gpt-4o-transcribe", "language": "ru", "prompt": "Hi"},
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": 500,
            },
            "noise_reduction": None,
        }
        told = await answer(client, update(format=None, transcription=None, turn_detection=None))
        shown = told["session"]["audio"]["input"]
        assert shown["format"] == {"type": "audio/pcm", "rate": 24_000}
        assert shown["transcription"] == {"model": STREAMING, "language": None, "prompt": ""}
        assert shown["turn_detection"] is None


async def test_the_settings_reach_the_models(quick: LiveService) -> None:
    whisper = {"model": WHISPER, "language": "RU", "prompt": "Hello", "keywords": ["Ray", "Vosk"]}
    streaming = {"model": STREAMING, "languages": ["en", "ru"], "prompt": "Hello"}
    endpoint = {
        "type": "server_vad",
        "threshold": 0.3,
        "prefix_padding_ms": 500,
        "silence_duration_ms": 900,
        "create_response": False,
    }
    async with session(quick, transcription=whisper, turn_detection=endpoint) as connection:
        await hear(connection, exact(say(1), silence(1.2)))
        await items(connection, 1)
        asked = quick.ears.asked[-1]
        assert (asked.model, asked.language) == (WHISPER, "ru")
        assert (asked.initial_prompt, asked.hotwords) == ("Hello", "Ray, Vosk")
        (heard,) = quick.ears.endpointing
        assert (heard.threshold, heard.end_threshold) == (0.3, 0.3)
        assert (heard.pre_roll_s, heard.silence_s) == (0.5, 0.9)
    async with session(quick, transcription=streaming) as connection:
        await hear(connection, exact(say(1), silence(1)))
        await items(connection, 1)
    assert quick.ears.opened == [(STREAMING, "Hello")]


async def test_settings_may_change_while_one_speaks(quick: LiveService) -> None:
    async with session(quick) as connection:
        await hear(connection, exact(say(1, 2)))
        await connection.session.update(
            session={
                "type": "transcription",
                "audio": {
                    "input": {"transcription": {"model": UTTERANCES}, "turn_detection": None}
                },
            }
        )
        await hear(connection, exact(say(3), silence(1), say(4)))
        await connection.input_audio_buffer.commit()
        told = await items(connection, 2)
    assert transcripts(told) == ["1 2", "3 4"]
    assert {asked.model for asked in quick.ears.asked} == {UTTERANCES}


async def test_an_update_that_changes_nothing_cuts_nothing(quick: LiveService) -> None:
    async with session(quick) as connection:
        await hear(connection, exact(say(1, 2)))
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": {"noise_reduction": None}}}
        )
        await hear(connection, exact(say(3), silence(1)))
        assert transcripts(await items(connection, 1)) == ["1 2 3"]


# The beta


BETA_SESSION = {
    "input_audio_format": "pcm16",
    "input_audio_transcription": {"model": "whisper-1", "language": "en"},
    "turn_detection": None,
    "input_audio_noise_reduction": {"type": "near_field"},
    "include": [LOGPROBS],
}


async def test_the_client_of_the_beta(quick: LiveService) -> None:
    async with (
        sdk(quick) as client,
        client.beta.realtime.connect(model="whisper-1", extra_query=QUERY) as connection,
    ):
        created: Event = await connection.recv()
        await connection.transcription_session.update(session=BETA_SESSION)  # type: ignore[arg-type]
        updated: Event = await connection.recv()
        await connection.input_audio_buffer.append(audio=base64_of(pcm(silence(1))))
        await connection.input_audio_buffer.commit()
        told = [await connection.recv() for _ in range(3)]
    assert (created.type, created.session["object"]) == (
        "transcription_session.created",
        "realtime.transcription_session",
    )
    shown = {name: getattr(updated.session, name) for name in ("input_audio_format", "include")}
    assert updated.type == "transcription_session.updated"
    assert shown == {"input_audio_format": "pcm16", "include": [LOGPROBS]}
    assert updated.session.input_audio_transcription.language == "en"
    assert updated.session.turn_detection is None
    assert [event.type for event in told] == [
        "input_audio_buffer.committed",
        "conversation.item.created",
        f"{TRANSCRIPTION}.completed",
    ]


async def test_the_form_of_the_beta_is_answered_in_it_without_its_header(
    quick: LiveService,
) -> None:
    async with socket(quick) as client:
        wanted = {"input_audio_format": "g711_alaw"}
        told = await answer(client, {"type": "transcription_session.update", "session": wanted})
    assert told["type"] == "transcription_session.updated"
    assert told["session"]["input_audio_format"] == "g711_alaw"


# The handshake


@pytest.mark.parametrize(
    ("offered", "taken", "created"),
    [
        (["realtime", "openai-insecure-api-key.sk-none"], "realtime", "session.created"),
        (
            ["realtime", "openai-insecure-api-key.sk-none", "openai-beta.realtime-v1"],
            "realtime",
            "transcription_session.created",
        ),
        (["something-else"], None, "session.created"),
    ],
)
async def test_browsers_say_key_and_version_in_subprotocols(
    quick: LiveService, offered: Any, taken: str | None, created: str
) -> None:
    uri = f"ws://127.0.0.1:{quick.port}{PATH}"
    async with connect(uri, subprotocols=offered) as plain:
        assert plain.subprotocol == taken
        assert json.loads(await plain.recv())["type"] == created


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("?intent=conversation", "invalid_request", None),
        ("?model=gpt-realtime", "model_not_found", "model"),
        ("?intent=transcription&model=demo-gigaam-emo", "invalid_request", None),
    ],
)
async def test_what_is_no_transcription_is_refused_with_a_reason(
    quick: LiveService, query: str, code: str, param: str | None
) -> None:
    async with quick.connect(f"/v1/realtime{query}") as client:
        (error,) = await client.rest()
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert (error["error"]["code"], error["error"]["param"]) == (code, param)
    assert client.closed[0] == 1008


async def test_without_an_intent_it_transcribes(quick: LiveService) -> None:
    async with socket(quick, "/v1/realtime?model=whisper-1"):
        pass


async def test_beyond_the_bound_the_handshake_is_refused() -> None:
    async with serving(Ears(), max_sessions=1) as service, session(service):
        with pytest.raises(InvalidStatus) as refused:
            async with sdk(service) as client, client.realtime.connect(extra_query=QUERY):
                pass
    response = refused.value.response
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    error = json.loads(response.body or b"")["error"]
    assert (error["type"], error["code"]) == ("server_error", "overloaded")


# What is refused while the session goes on


INPUT = "session.audio.input"
NO_JSON = ["", "hello", "[]", "null", "1", '{"type": ' + "[" * 100_000, b'{"type": "x"}', b"\0\1"]


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        *((message, "invalid_json", None) for message in NO_JSON),
        ({}, "missing_required_parameter", "type"),
        ({"type": "input_audio_buffer.bend"}, "unknown_event", "type"),
        ({"type": ["session.update"]}, "unknown_event", "type"),
        ({"type": "response.create"}, "not_supported", "type"),
        ({"type": "conversation.item.create", "item": {}}, "not_supported", "type"),
        ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
        ({"type": "input_audio_buffer.append", "audio": 1}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "AAA"}, "invalid_audio", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "A A="}, "invalid_audio", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "ЯЯЯЯ"}, "invalid_audio", "audio"),
        (COMMIT, "input_audio_buffer_commit_empty", None),
        ({"type": "session.update"}, "invalid_value", "session"),
        (update(transcription={"model": "nothing"}), "model_not_found", "model"),
        (update(transcription={"model": "demo-gigaam-emo"}), "invalid_request", None),
        (
            update(transcription={"prompt": "x" * 10_001}),
            "invalid_value",
            f"{INPUT}.transcription.prompt",
        ),
        (update(format={"type": "audio/mp3"}), "invalid_audio_format", f"{INPUT}.format.type"),
        (
            update(format={"type": "audio/pcm", "rate": 96_000}),
            "invalid_audio_format",
            f"{INPUT}.format.rate",
        ),
        (
            update(format={"type": "audio/pcma", "rate": 16_000}),
            "invalid_audio_format",
            f"{INPUT}.format",
        ),
        (update(turn_detection={}), "missing_required_parameter", f"{INPUT}.turn_detection.type"),
        (
            update(turn_detection={"type": "loud"}),
            "invalid_value",
            f"{INPUT}.turn_detection.type",
        ),
        (
            update(turn_detection={"type": "server_vad", "threshold": 1.5}),
            "invalid_value",
            f"{INPUT}.turn_detection.threshold",
        ),
        (update(voice="alloy"), "unknown_parameter", f"{INPUT}.voice"),
        (
            {"type": "session.update", "session": {"type": "realtime"}},
            "invalid_value",
            "session.type",
        ),
        (
            {"type": "session.update", "session": {"include": ["everything"]}},
            "invalid_value",
            "session.include.0",
        ),
        (
            {"type": "transcription_session.update", "session": {"input_audio_format": "mp3"}},
            "invalid_audio_format",
            "session.input_audio_format",
        ),
    ],
)
async def test_what_cannot_be_obeyed_is_told_and_the_session_goes_on(
    quick: LiveService, message: Any, code: str, param: str | None
) -> None:
    given = {"event_id": "mine"} if isinstance(message, dict) else {}
    async with socket(quick) as client:
        for _ in range(2):  # before the stream begins, and while it runs
            told = await answer(client, message | given if given else message)
            error = told["error"]
            assert (told["type"], error["type"]) == ("error", "invalid_request_error")
            assert (error["code"], error["param"]) == (code, param)
            assert error["event_id"] == given.get("event_id")
            assert error["message"]
            await answer(client, update(format=RAW))
            await client.send(append(exact(say(1), silence(1))))
            completed = (await client.until(type=f"{TRANSCRIPTION}.completed"))[-1]
            assert completed["transcript"] == "1"
            if message == COMMIT:
                await client.send(COMMIT)
                await client.until(type=f"{TRANSCRIPTION}.completed")


async def test_half_a_character_is_answered(quick: LiveService) -> None:
    async with socket(quick) as client:
        told = await answer(client, '{"type": "x", "event_id": "\\ud800"}')
        assert told["error"]["event_id"] == "?"
        told = await answer(client, update(transcription={"model": "x\ud800"}))
        assert told["type"] == "error"
    async with quick.connect("/v1/ws") as native:
        await native.send({"type": "start", "model": "x\ud800"})
        assert (await native.rest())[-1]["code"] in ("model_not_found", "invalid_request")


# Bounds


async def test_the_bound_of_a_message(quick: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    message = json.dumps(append(exact(say(1), silence(1))))
    monkeypatch.setattr(realtime_module, "MAX_MESSAGE_CHARS", len(message))
    async with socket(quick) as client:
        await answer(client, update(format=RAW))
        assert (await answer(client, message + " "))["error"]["code"] == "message_too_large"
        await client.send(message)
        told = await client.until(type=f"{TRANSCRIPTION}.completed")
    assert told[-1]["transcript"] == "1"


async def test_the_bound_of_what_is_not_committed(
    quick: LiveService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime_module, "MAX_TURN_S", 2.0)
    async with socket(quick) as client:
        await answer(client, update(format=RAW, turn_detection=None))
        await client.send(append(exact(silence(1.0))))
        full = await answer(client, append(exact(silence(1.001))))
        assert full["error"]["code"] == "input_audio_buffer_full"
        await client.send(append(exact(silence(1.0))), COMMIT)
        told = await client.until(type=f"{TRANSCRIPTION}.completed")
        assert told[-1]["usage"]["seconds"] == 2.0
        await client.send(append(exact(silence(2.0))), CLEAR, append(exact(silence(2.0))), COMMIT)
        told = await client.until(type=f"{TRANSCRIPTION}.completed")
        assert "error" not in [event["type"] for event in told]


async def test_the_least_that_can_be_committed(quick: LiveService) -> None:
    async with socket(quick) as client:
        await answer(client, update(format=RAW, turn_detection=None))
        await client.send(append(exact(silence(0.099))))
        empty = await answer(client, COMMIT)
        assert empty["error"]["code"] == "input_audio_buffer_commit_empty"
        assert (await answer(client, append(b"\0" * 32), COMMIT))["type"].endswith("committed")


TENTH = 2 * SAMPLE_RATE // 10
"""Bytes of the shortest commit at 16 kHz."""
ALAW = update(format={"type": "audio/pcma"})


@pytest.mark.parametrize(
    "messages",
    [
        [append(bytes(TENTH // 10))] * 10,
        [append(bytes(size)) for size in (1067, 1067, 1066)],
        [append(bytes(1))] * TENTH,
        [append(bytes(TENTH // 2)), ALAW, append(bytes(400))],
    ],
    ids=["of 10 ms", "that cut samples", "of one byte", "of two formats"],
)
async def test_the_least_that_can_be_committed_may_come_in_pieces(
    quick: LiveService, messages: list[Any]
) -> None:
    async with socket(quick) as client:
        await answer(client, update(format=RAW, turn_detection=None))
        await client.send(*messages, COMMIT)
        told = [await client.receive() for _ in range(4 + messages.count(ALAW))]
    assert [event["usage"]["seconds"] for event in told if "usage" in event] == [0.1]


async def test_the_bound_of_what_is_not_committed_may_be_reached_in_pieces_of_two_formats(
    quick: LiveService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime_module, "MAX_TURN_S", 0.3)
    async with socket(quick) as client:
        await answer(client, update(format=RAW, turn_detection=None))
        await client.send(*[append(bytes(TENTH))] * 2)
        await answer(client, ALAW)
        await client.send(*[append(bytes(80))] * 10)
        full = await answer(client, append(bytes(1)))
        assert full["error"]["code"] == "input_audio_buffer_full"
        told = [await answer(client, COMMIT)] + [await client.receive() for _ in range(3)]
    assert told[-1]["usage"]["seconds"] == 0.3


async def test_another_law_of_the_telephone_takes_effect(quick: LiveService) -> None:
    async with socket(quick) as client:
        await answer(client, update(format={"type": "audio/pcmu"}, turn_detection=None))
        await client.send(append(b"\xff" * 800))  # silence in one law, not in the other
        await answer(client, ALAW)
        await client.send(append(b"\xff" * 8000), COMMIT)
        told = await client.until(type=f"{TRANSCRIPTION}.completed")
    assert "848" in told[-1]["transcript"].split()


async def test_audio_that_cannot_wait_is_refused_and_may_be_sent_again() -> None:
    async with serving(Ears(), max_pending_mb=1) as service, socket(service) as client:
        service.ears.opening.shut()
        await answer(client, update(format=RAW, turn_detection=None))
        second = exact(silence(1))
        await client.send(*[append(second)] * 32)
        refused = await answer(client, append(second, event_id="mine"))
        assert refused["error"]["type"] == "server_error"
        assert refused["error"]["code"] == "too_far_ahead"
        assert refused["error"]["event_id"] == "mine"
        service.ears.opening.open()
        await client.send(COMMIT)
        await client.until(type=f"{TRANSCRIPTION}.completed")
        await client.send(append(second), COMMIT)
        told = await client.until(type=f"{TRANSCRIPTION}.completed")
    assert told[-1]["usage"]["seconds"] == 1.0


@pytest.mark.parametrize("turn_detection", [{"type": "server_vad"}, None])
async def test_the_longest_session_is_finished_and_closed(turn_detection: Any) -> None:
    async with serving(Ears(), max_stream_s=2.0) as service, socket(service) as client:
        await answer(client, update(format=RAW, turn_detection=turn_detection))
        await client.send(append(exact(say(1, 2), silence(2))))
        told = await client.rest()
    *_, completed, error = told
    assert (completed["type"], completed["transcript"]) == (f"{TRANSCRIPTION}.completed", "1 2")
    assert error["error"]["code"] == "session_expired"
    assert client.closed[0] == 1008


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_says_nothing_is_told_so_and_closed(begun: bool) -> None:
    bounds = {"start_timeout_s": 0.05, "idle_timeout_s": 0.5}
    async with serving(Ears(), **bounds) as service, socket(service) as client:
        await asyncio.sleep(0.1)  # who was greeted has the longer time
        await answer(client, update(format=RAW))
        if begun:
            await client.send(append(exact(silence(1))))
        error = (await client.rest())[-1]
    assert error["error"]["code"] == "idle_timeout"
    assert client.closed[0] == 1008


# The end


async def stop(service: LiveService) -> "asyncio.Task[None]":
    stopping = asyncio.create_task(service.streams.sessions.drain())
    await asyncio.sleep(0)
    return stopping


@contextmanager
def given_up(task: "asyncio.Task[None]") -> Iterator[None]:
    try:
        yield
    finally:
        task.cancel()


async def test_a_stopped_service_makes_an_item_of_what_was_heard(quick: LiveService) -> None:
    async with session(quick, turn_detection=None) as connection:
        await hear(connection, exact(say(1, 2, 3), silence(2)))
        await until(connection, f"{TRANSCRIPTION}.delta")
        with given_up(await stop(quick)):
            told = await items(connection, 1)
            with pytest.raises(ConnectionClosed) as closed:
                await next_event(connection)
    assert transcripts(told) == ["1 2 3"]
    assert "input_audio_buffer.committed" in kinds(told)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def test_a_stopped_service_closes_who_has_not_begun(quick: LiveService) -> None:
    async with socket(quick) as client:
        with given_up(await stop(quick)):
            assert await client.rest() == []
    assert client.closed[0] == 1001


MOMENTS: dict[str, list[Any]] = {
    "greeted": [],
    "updated": [update(format=RAW)],
    "appended": [append(b"\0\0")],
    "speaking": [update(format=RAW), append(exact(say(1, 2)))],
    "committed": [update(turn_detection=None), append(exact(say(1))), COMMIT],
    "cleared": [append(exact(say(1))), CLEAR],
    "changed": [append(exact(say(1))), update(transcription={"model": UTTERANCES})],
    "poured": [update(format=RAW), *[append(exact(say(*range(1, 40))))] * 20],
}


@pytest.mark.parametrize("gate", [None, "opening", "activity", "feeding", "transcribing"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_client_that_is_gone_leaves_nothing(moment: str, gate: str | None) -> None:
    # What is left of a stream, task or model, is looked for when the service ends.
    for model in (STREAMING, UTTERANCES):
        async with serving(Ears()) as service:
            if gate is not None:
                getattr(service.ears, gate).shut()
            async with socket(service, f"{PATH}&model={model}") as client:
                await client.send(*MOMENTS[moment])
                for _ in range(20):
                    await asyncio.sleep(0)
                client.drop()


# The demo models


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Any]:
    """Sentences in two languages."""
    return clips(demo_audio, count=2)


def errors(said: list[Any], heard: list[str]) -> float:
    return wer(" ".join(c.text for c in said), " ".join(heard))


def telephone(samples: Samples, codec: str) -> bytes:
    """G.711 as FFmpeg makes it."""
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format = 8000, "mono", "s16"
    narrow = np.frombuffer(pcm(soxr.resample(samples, SAMPLE_RATE, 8000)), "<i2")
    frame = av.AudioFrame.from_ndarray(narrow.reshape(1, -1), "s16", "mono")
    frame.sample_rate = 8000
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))


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
        await hear(connection, audio, 4801)
        await connection.input_audio_buffer.commit()
        told = await items(connection, 1)
    assert_sound(told)
    assert errors(spoken, transcripts(told)) < bound
    (usage,) = [event.usage for event in told if hasattr(event, "usage")]
    assert usage.seconds == pytest.approx(len(speech) / SAMPLE_RATE, abs=0.001)


@pytest.mark.parametrize("model", [WHISPER, STREAMING])
async def test_log_probabilities_where_the_model_has_them(
    demo: LiveService, spoken: list[Any], model: str
) -> None:
    wanted = {"include": [LOGPROBS], "transcription": {"model": model}}
    async with session(demo, **wanted) as connection:
        await hear(connection, pcm(spoken[2].samples, silence(1)))
        told = await items(connection, 1)
    completed = told[-1]
    deltas = [event for event in told if event.type == f"{TRANSCRIPTION}.delta"]
    if model == STREAMING:
        assert [event.logprobs for event in (*deltas, completed)] == [None] * (len(deltas) + 1)
        return
    tokens = [one.token for one in completed.logprobs]
    assert "".join(tokens).strip() == completed.transcript
    assert [one.token for event in deltas for one in event.logprobs] == tokens
    assert all(one.logprob <= 0 for one in completed.logprobs)


# The page


def test_the_page_names_every_setting_and_every_event_that_is_refused(repository: Path) -> None:
    page = (repository / "docs/api/realtime.md").read_text(encoding="utf-8")

    def fields(model: Any) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield name
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(inner, "model_fields"):
                    yield from fields(inner)

    named = {*fields(SessionUpdate), *fields(BetaSessionUpdate), *realtime_module.NOT_SERVED}
    assert [name for name in named if not re.search(rf"[`.\"]{name}[`\"]", page)] == []
