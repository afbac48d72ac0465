"""The bounds of ``WS /v1/realtime``, and every way a session ends."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from api.openai import realtime as realtime_module
from speech.audio import SAMPLE_RATE
from tests.unit.api.openai.realtime_client import (
    COMMIT,
    PATH,
    RAW,
    TRANSCRIPTION,
    answer,
    append,
    feed,
    items,
    kinds,
    next_event,
    session,
    socket,
    transcripts,
    until,
    update,
)
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, silence, speak
from tests.unit.live_service import (
    STREAMING,
    UTTERANCES,
    LiveService,
    serving,
)

CLEAR = {"type": "input_audio_buffer.clear"}
# Bounds


async def test_the_bound_of_a_message(quick: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    message = json.dumps(append(exact(speak(1), silence(1))))
    monkeypatch.setattr(realtime_module, "MAX_MESSAGE_CHARS", len(message))
    async with socket(quick) as client:
        await answer(client, update(format=RAW))
        assert (await answer(client, message + " "))["error"]["code"] == "message_too_large"
        await client.send(message)
        received = await client.until(type=f"{TRANSCRIPTION}.completed")
    assert received[-1]["transcript"] == "1"


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
        received = await client.until(type=f"{TRANSCRIPTION}.completed")
        assert received[-1]["usage"]["seconds"] == 2.0
        await client.send(append(exact(silence(2.0))), CLEAR, append(exact(silence(2.0))), COMMIT)
        received = await client.until(type=f"{TRANSCRIPTION}.completed")
        assert "error" not in [event["type"] for event in received]


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
        received = [await client.receive() for _ in range(4 + messages.count(ALAW))]
    assert [event["usage"]["seconds"] for event in received if "usage" in event] == [0.1]


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
        received = [await answer(client, COMMIT)] + [await client.receive() for _ in range(3)]
    assert received[-1]["usage"]["seconds"] == 0.3


async def test_another_law_of_the_telephone_takes_effect(quick: LiveService) -> None:
    async with socket(quick) as client:
        await answer(client, update(format={"type": "audio/pcmu"}, turn_detection=None))
        await client.send(append(b"\xff" * 800))  # silence in one law, not in the other
        await answer(client, ALAW)
        await client.send(append(b"\xff" * 8000), COMMIT)
        received = await client.until(type=f"{TRANSCRIPTION}.completed")
    assert "848" in received[-1]["transcript"].split()


async def test_audio_that_cannot_wait_is_refused_and_may_be_sent_again() -> None:
    async with serving(FakeModels(), max_pending_mb=1) as service, socket(service) as client:
        service.models.opening.shut()
        await answer(client, update(format=RAW, turn_detection=None))
        second = exact(silence(1))
        await client.send(*[append(second)] * 32)
        refused = await answer(client, append(second, event_id="mine"))
        assert refused["error"]["type"] == "server_error"
        assert refused["error"]["code"] == "too_far_ahead"
        assert refused["error"]["event_id"] == "mine"
        service.models.opening.open()
        await client.send(COMMIT)
        await client.until(type=f"{TRANSCRIPTION}.completed")
        await client.send(append(second), COMMIT)
        received = await client.until(type=f"{TRANSCRIPTION}.completed")
    assert received[-1]["usage"]["seconds"] == 1.0


@pytest.mark.parametrize("turn_detection", [{"type": "server_vad"}, None])
async def test_the_longest_session_is_finished_and_closed(turn_detection: Any) -> None:
    async with serving(FakeModels(), max_stream_s=2.0) as service, socket(service) as client:
        await answer(client, update(format=RAW, turn_detection=turn_detection))
        await client.send(append(exact(speak(1, 2), silence(2))))
        received = await client.rest()
    *_, completed, error = received
    assert (completed["type"], completed["transcript"]) == (f"{TRANSCRIPTION}.completed", "1 2")
    assert error["error"]["code"] == "session_expired"
    assert client.closed[0] == 1008


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_sends_nothing_is_closed_with_the_reason(begun: bool) -> None:
    bounds = {"start_timeout_s": 0.05, "idle_timeout_s": 0.5}
    async with serving(FakeModels(), **bounds) as service, socket(service) as client:
        await asyncio.sleep(0.1)  # after the greeting the longer timeout applies
        await answer(client, update(format=RAW))
        if begun:
            await client.send(append(exact(silence(1))))
        error = (await client.rest())[-1]
    assert error["error"]["code"] == "idle_timeout"
    assert client.closed[0] == 1008


@pytest.mark.parametrize("turn_detection", [{"type": "server_vad"}, None])
async def test_audio_of_a_client_that_falls_silent_is_transcribed_before_it_is_closed(
    turn_detection: Any,
) -> None:
    async with serving(FakeModels(), idle_timeout_s=0.3) as service, socket(service) as client:
        await answer(client, update(format=RAW, turn_detection=turn_detection))
        await client.send(append(exact(speak(1, 2))))
        *_, completed, error = await client.rest()
    assert (completed["type"], completed["transcript"]) == (f"{TRANSCRIPTION}.completed", "1 2")
    assert error["error"]["code"] == "idle_timeout"
    assert client.closed[0] == 1008


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


# The end


async def test_a_stopped_service_makes_an_item_of_what_was_received(quick: LiveService) -> None:
    async with session(quick, turn_detection=None) as connection:
        await feed(connection, exact(speak(1, 2, 3), silence(2)))
        await until(connection, f"{TRANSCRIPTION}.delta")
        with given_up(await stop(quick)):
            received = await items(connection, 1)
            with pytest.raises(ConnectionClosed) as closed:
                await next_event(connection)
    assert transcripts(received) == ["1 2 3"]
    assert "input_audio_buffer.committed" in kinds(received)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def test_a_stopped_service_closes_sockets_without_a_session(quick: LiveService) -> None:
    async with socket(quick) as client:
        with given_up(await stop(quick)):
            assert await client.rest() == []
    assert client.closed[0] == 1001


MOMENTS: dict[str, list[Any]] = {
    "greeted": [],
    "updated": [update(format=RAW)],
    "appended": [append(b"\0\0")],
    "speaking": [update(format=RAW), append(exact(speak(1, 2)))],
    "committed": [update(turn_detection=None), append(exact(speak(1))), COMMIT],
    "cleared": [append(exact(speak(1))), CLEAR],
    "changed": [append(exact(speak(1))), update(transcription={"model": UTTERANCES})],
    "much audio": [update(format=RAW), *[append(exact(speak(*range(1, 40))))] * 20],
}


@pytest.mark.parametrize("gate", [None, "opening", "activity", "feeding", "transcribing"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_client_that_disconnects_leaves_nothing(moment: str, gate: str | None) -> None:
    # What is left of a stream, task or model, is looked for when the service ends.
    for model in (STREAMING, UTTERANCES):
        async with serving(FakeModels()) as service:
            if gate is not None:
                getattr(service.models, gate).shut()
            async with socket(service, f"{PATH}&model={model}") as client:
                await client.send(*MOMENTS[moment])
                for _ in range(20):
                    await asyncio.sleep(0)
                client.drop()
