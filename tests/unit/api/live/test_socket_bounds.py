"""The bounds of a live socket, in every dialect that has no error object of its own."""

import asyncio
import contextlib
import json

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.live import conversation as sockets
from api.live.websocket import FLOW_CONTROL
from tests.unit.api.native_client import END, SECOND, native, numbers, stream, texts
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, frames, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES, serving


async def test_a_client_that_is_too_far_ahead_is_closed_and_loses_nothing():
    models = FakeModels()
    async with serving(models, max_pending_mb=1) as service:
        models.activity.shut()
        audio = exact(*[part for n in range(1, 60) for part in (speak(n), silence(0.8))])
        size = 700_000
        async with native(service, partials=False) as (client, ready):
            await client.send(audio[:size])
            await models.activity.reached.wait()
            await client.send(audio[size : 2 * size], audio[2 * size :])
            (error,) = await client.rest()
        assert (error["type"], error["code"]) == ("error", "too_far_ahead")
        assert error["retry_after_s"] > 0
        assert client.closed[0] == 1013
        models.activity.open()
        resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
        async with native(service, resume=resume) as (client, again):
            assert again["resumed"]
            assert again["audio_from_s"] == 2 * size / SECOND
            await client.send(audio[2 * size :], END)
            assert " ".join(texts(await client.rest())) == numbers(1, 59)


@pytest.mark.parametrize("slowed", [True, False])
async def test_a_client_that_sends_too_fast_is_refused_unless_it_can_be_slowed_down(slowed):
    models = FakeModels()
    models.yields = 500
    async with serving(models, max_pending_mb=1) as service:
        if slowed:
            service.app.extensions[FLOW_CONTROL] = {}
        audio = exact(*[part for n in range(1, 60) for part in (speak(n), silence(1.6))])
        async with service.connect() as client:
            with contextlib.suppress(ConnectionClosed):
                await client.send({"settings": {"tra": {}}}, *frames(audio, 200_000), b"")
            received = await client.rest()
    if slowed:
        assert " ".join(chunk["text"] for chunk in received) == numbers(1, 59)
    else:
        assert "wait to be recognised" in received[-1]["error"]


async def test_a_stream_that_is_too_long_is_finished_then_refused():
    async with serving(FakeModels(), max_stream_s=2.0) as service, native(service) as (client, _):
        await client.send(exact(speak(*range(1, 11))))
        *_, final, error, done = await client.rest()
    assert final["text"] == numbers(1, 5)
    assert (error["code"], done["type"]) == ("stream_too_long", "done")
    assert client.closed[0] == 1008


@pytest.mark.parametrize("path", ["/v1/ws", "/ws", "/vosk"])
async def test_one_stream_too_many_is_refused_in_the_handshake(path):
    async with serving(FakeModels(), max_sessions=1) as service:
        async with service.connect(path):
            with pytest.raises(InvalidStatus) as refused:
                async with service.connect(path):
                    pass
            response = refused.value.response
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert json.loads(response.body)["code"] == "overloaded"
        await service.idle()
        async with service.connect(path):
            pass


@pytest.mark.parametrize(
    ("path", "first", "field", "code"),
    [
        ("/v1/ws", {"type": "start"}, "message", 1008),
        ("/v1/ws", {"settings": {"tra": {}}}, "error", 1000),
        ("/ws", b"\0\0", "error", 1008),
        ("/vosk", b"\0\0", "error", 1008),
        ("/v1/ws", None, "error", 1000),
    ],
)
async def test_a_client_that_sends_nothing_is_closed_with_the_reason(path, first, field, code):
    limits = {"start_timeout_s": 0.05} if first is None else {"idle_timeout_s": 0.05}
    async with (
        serving(FakeModels(), **limits, retention_s=0) as service,
        service.connect(path) as client,
    ):
        if first is not None:
            await client.send(first)
        answers = await client.rest()
    assert "nothing was received for 0.05 seconds" in answers[-1][field]
    assert client.closed[0] == code


@pytest.mark.parametrize(
    ("path", "first", "field", "code"),
    [
        ("/v1/ws", {"type": "start"}, "message", 1008),
        ("/v1/ws", {"type": "start", "model": UTTERANCES}, "message", 1008),
        ("/v1/ws", {"settings": {"tra": {}}}, "error", 1000),
        ("/ws", {"config": {}}, "error", 1008),
        ("/ws", {"config": {"model": STREAMING}}, "error", 1008),
        ("/vosk", {"config": {"sample_rate": 16_000}}, "error", 1008),
        ("/vosk?sample_rate=16000", {"config": {"model": UTTERANCES}}, "error", 1008),
    ],
)
async def test_audio_of_a_client_that_falls_silent_is_recognised_before_it_is_closed(
    path, first, field, code
):
    async with (
        serving(FakeModels(), idle_timeout_s=0.2) as service,
        service.connect(path) as client,
    ):
        await client.send(first, exact(speak(1, 2, 3)))
        *_, result, error = await client.rest()
        await service.idle()
        service.assert_free()
    if path == "/ws":
        assert [a["last_message"] for a in (result, error)] == [False, True]
        result = {"text": result["data"]} if isinstance(result["data"], str) else result["data"]
    assert result["text"] == "1 2 3"
    assert "nothing was received for 0.2 seconds" in error[field]
    assert client.closed[0] == code


@pytest.mark.parametrize("path", ["/v1/ws", "/vosk"])
async def test_an_idle_client_is_closed_though_its_audio_takes_too_long(monkeypatch, path):
    monkeypatch.setattr(sockets, "FINISH_TIMEOUT_S", 0.1)
    limits = {"idle_timeout_s": 0.2, "retention_s": 0}
    async with (
        serving(FakeModels(), **limits) as service,
        service.connect(path) as client,
    ):
        service.models.activity.shut()
        await client.send({"type": "start"} if path == "/v1/ws" else {"config": {}})
        await client.send(exact(speak(1)))
        answers = await client.rest()
    assert "nothing was received" in str(answers[-1])
    assert client.closed[0] == 1008


async def test_a_client_that_waits_for_a_slow_model_is_not_idle():
    models = FakeModels()
    async with serving(models, idle_timeout_s=0.5) as service:
        models.transcribing.shut()
        asyncio.get_running_loop().call_later(1.2, models.transcribing.open)
        assert texts(await stream(service, exact(speak(1)), model=UTTERANCES)) == ["1"]


async def test_a_client_that_does_not_read_is_closed_with_the_reason(quick, monkeypatch):
    monkeypatch.setattr(sockets, "SEND_TIMEOUT_S", 0.05)
    frames_sent = iter(
        [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": '{"type": "start"}'},
            {"type": "websocket.receive", "bytes": exact(speak(1))},
        ]
    )
    sent = []

    async def receive():
        return next(frames_sent, None) or await asyncio.Future()

    async def send(message):
        sent.append(message)
        if message["type"] == "websocket.send":
            await asyncio.Future()

    scope = {"type": "websocket", "path": "/v1/ws", "query_string": b"", "headers": []}
    await quick.app(scope, receive, send)
    reason = "the client does not read"
    assert sent[-1] == {"type": "websocket.close", "code": 1013, "reason": reason}
    (session,) = [json.loads(m["text"])["session"] for m in sent if m["type"] == "websocket.send"]
    await stream(quick, b"", resume={"session": session, "seq": 0, "from_s": 0.0})
