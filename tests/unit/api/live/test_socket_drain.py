"""Live sockets of a replica that is being stopped."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speech.live import registry as sessions
from tests.unit.api.native_client import END, native, texts
from tests.unit.live_audio import exact, silence, speak
from tests.unit.live_service import UTTERANCES


@asynccontextmanager
async def draining(service):
    """The service while it is being stopped; no socket is let in any more."""
    task = asyncio.create_task(service.streams.sessions.drain())
    with pytest.raises(InvalidStatus) as refused:
        async with service.connect():
            pass
    assert refused.value.response.status_code == 503
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("path", "first", "expected"),
    [
        ("/v1/ws", {"type": "start"}, ["1 2 3"]),
        ("/v1/ws", {"settings": {"tra": {}}}, ["1 2 3"]),
        ("/ws", {"config": {}}, []),
        ("/vosk", {"config": {"sample_rate": 16_000}}, ["1 2 3"]),
    ],
)
async def test_a_stream_ends_at_its_next_pause_and_goes_away(quick, path, first, expected):
    models = quick.models
    async with quick.connect(path) as client:
        await client.send(first)
        await client.send(exact(speak(1, 2)))
        await models.activity.reached.wait()
        async with draining(quick):
            with contextlib.suppress(ConnectionClosed):
                await client.send(exact(speak(3), silence(1)))
            messages = await client.rest()
    if path == "/ws":  # what waits in its buffer is recognised at once
        assert messages[-1]["data"]["text"] in ("1 2", "1 2 3")
        assert not messages[-1]["last_message"]
    else:
        texts_sent = [m["text"] for m in messages if m.get("text") and m.get("type") != "partial"]
        assert texts_sent == expected
    assert not [m for m in messages if m.get("type") == "done"]
    assert client.closed[0] == 1001


async def test_an_utterance_without_end_is_waited_for_only_so_long(quick, monkeypatch):
    monkeypatch.setattr(sessions, "DRAIN_S", 0.0)
    async with native(quick) as (client, _):
        await client.send(exact(speak(1, 2)))
        await client.until(type="partial", text="1 2")
        async with draining(quick):
            events = await client.rest()
    assert texts(events) == ["1 2"]
    assert client.closed[0] == 1001


@pytest.mark.parametrize(
    ("path", "first", "end", "last"),
    [
        ("/v1/ws", {"type": "start", "model": UTTERANCES}, END, ("type", "done")),
        ("/v1/ws", {"settings": {"tra": {}}}, b"", ("text", "1")),
        ("/ws", {"config": {}}, '{"eof": 1}', ("last_message", True)),
        ("/vosk?sample_rate=16000", {"config": {"model": UTTERANCES}}, '{"eof": 1}', ("text", "1")),
    ],
)
async def test_a_client_that_has_sent_the_end_gets_all_results(quick, path, first, end, last):
    quick.models.transcribing.shut()
    async with quick.connect(path) as client:
        await client.send(first)
        await client.send(exact(speak(1)), end)
        await quick.models.transcribing.reached.wait()
        async with draining(quick):
            quick.models.transcribing.open()
            messages = await client.rest()
    assert messages[-1][last[0]] == last[1]
    assert client.closed[0] == 1000
