"""What ``WS /v1/realtime`` refuses, in the handshake and in a running session."""

import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.unit.api.openai.realtime_client import (
    COMMIT,
    PATH,
    QUERY,
    RAW,
    TRANSCRIPTION,
    answer,
    append,
    sdk,
    session,
    socket,
    update,
)
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, silence, speak
from tests.unit.live_service import (
    STREAMING,
    LiveService,
    serving,
)

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
        (["something-else"], "something-else", "session.created"),
        (["openai-insecure-api-key.sk-none", "realtime"], "realtime", "session.created"),
        (["openai-insecure-api-key.sk-none"], None, "session.created"),
    ],
)
async def test_browsers_send_key_and_version_as_subprotocols(
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
        ("?intent=transcription&model=demo-pyannote", "model_not_found", "model"),
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


@pytest.mark.parametrize(
    "name",
    ["gpt-realtime", "gpt-4o-realtime-preview", "gpt-4o-mini-realtime-preview-2024-12-17", "mine"],
)
async def test_with_an_intent_a_name_of_another_model_means_the_default(
    quick: LiveService, name: str
) -> None:
    async with quick.connect(f"{PATH}&model={name}") as client:
        created = await client.receive()
    assert created["session"]["audio"]["input"]["transcription"]["model"] == STREAMING


async def test_without_an_intent_it_transcribes(quick: LiveService) -> None:
    async with socket(quick, "/v1/realtime?model=whisper-1"):
        pass


async def test_beyond_the_bound_the_handshake_is_refused() -> None:
    async with serving(FakeModels(), max_sessions=1) as service, session(service):
        with pytest.raises(InvalidStatus) as refused:
            async with sdk(service) as client, client.realtime.connect(extra_query=QUERY):
                pass
    response = refused.value.response
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    error = json.loads(response.body or b"")["error"]
    assert (error["type"], error["code"]) == ("server_error", "overloaded")


INPUT = "session.audio.input"
NO_JSON = ["", "hello", "[]", "null", "1", '{"type": ' + "[" * 100_000, b'{"type": "x"}', b"\0\1"]
# What is refused while the session runs


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
async def test_an_event_that_cannot_be_handled_is_answered_and_the_session_continues(
    quick: LiveService, message: Any, code: str, param: str | None
) -> None:
    given = {"event_id": "mine"} if isinstance(message, dict) else {}
    async with socket(quick) as client:
        for _ in range(2):  # before the stream begins, and while it runs
            received = await answer(client, message | given if given else message)
            error = received["error"]
            assert (received["type"], error["type"]) == ("error", "invalid_request_error")
            assert (error["code"], error["param"]) == (code, param)
            assert error["event_id"] == given.get("event_id")
            assert error["message"]
            await answer(client, update(format=RAW))
            await client.send(append(exact(speak(1), silence(1))))
            completed = (await client.until(type=f"{TRANSCRIPTION}.completed"))[-1]
            assert completed["transcript"] == "1"
            if message == COMMIT:
                await client.send(COMMIT)
                await client.until(type=f"{TRANSCRIPTION}.completed")


async def test_half_a_character_is_answered(quick: LiveService) -> None:
    async with socket(quick) as client:
        received = await answer(client, '{"type": "x", "event_id": "\\ud800"}')
        assert received["error"]["event_id"] == "?"
        received = await answer(client, update(transcription={"model": "x\ud800"}))
        assert received["type"] == "error"
    async with quick.connect("/v1/ws") as native:
        await native.send({"type": "start", "model": "x\ud800"})
        assert (await native.rest())[-1]["code"] in ("model_not_found", "invalid_request")
