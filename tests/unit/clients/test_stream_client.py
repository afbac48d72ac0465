"""The asyncio client against a scripted server."""

import asyncio
import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from clients import stream_client
from clients.stream_client import ConnectionLost, Event, ServerBusy, StreamClient, StreamError
from tests.unit.clients.scripted_server import (
    RATE,
    WAIT_S,
    Scripted,
    Serve,
    expected_finals,
    ramp,
    serving,
    texts,
)


async def stream(
    client: StreamClient, pcm: bytes, finalize_at: Sequence[float] = ()
) -> list[Event]:
    """All events of a stream that sends ``pcm`` in odd pieces."""

    async def feed() -> None:
        cuts = sorted({round(at * RATE) * 2 for at in finalize_at} | {len(pcm)})
        at = 0
        for cut in cuts:
            for begin in range(at, cut, 333):
                await client.send(pcm[begin : min(begin + 333, cut)])
            if cut < len(pcm):
                await client.finalize()
            at = cut
        await client.finish()

    async with asyncio.timeout(WAIT_S), client:
        feeding = asyncio.create_task(feed())
        try:
            return [event async for event in client]
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until(server: Scripted, samples: int) -> None:
    """Wait until the server has received so many samples."""
    await eventually(lambda: server.received >= 2 * samples)


async def test_a_stream_gives_its_events_in_order_and_ends_with_done() -> None:
    server = Scripted()
    async with serving(server) as url:
        events = await stream(StreamClient(url, sample_rate=RATE, language="en"), ramp(4.5))
    assert texts(events) == expected_finals(4.5)
    assert [event["type"] for event in events].count("done") == 1
    assert events[-1]["type"] == "done"
    assert {event["type"] for event in events} == {"partial", "final", "done"}
    assert server.starts[0]["language"] == "en"
    assert "model" not in server.starts[0]


async def test_no_more_is_sent_than_the_server_gave_credit_for() -> None:
    server = Scripted()
    server.processes.clear()
    async with serving(server) as url, StreamClient(url, sample_rate=RATE, buffer_s=3.0) as client:
        sending = asyncio.create_task(client.send(ramp(20)))
        await until(server, 2 * RATE)
        await asyncio.sleep(0.1)
        assert server.received == 2 * 2 * RATE
        assert not sending.done()  # what waits is bounded too
        sending.cancel()


async def test_credit_is_kept_over_a_whole_stream() -> None:
    server = Scripted()
    async with serving(server) as url:
        await stream(StreamClient(url, sample_rate=RATE), ramp(20))
    assert server.ahead <= 2 * RATE


MOMENTS = [
    "ready",
    "100 samples",
    "1000 samples",
    "2500 samples",
    "before 1",
    "after 1",
    "before 3",
    "after 4",
    "finalize",
    "end",
    "before 7",
    "done",
]


@pytest.mark.parametrize("closes_with", [None, 1001, 1011, 1012])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("moment", MOMENTS[1:])
async def test_a_drop_loses_and_doubles_no_final(
    moment: str, keeps: bool, closes_with: int | None
) -> None:
    server = Scripted(moment, keeps=keeps, closes_with=closes_with)
    async with serving(server) as url:
        events = await stream(StreamClient(url, sample_rate=RATE), ramp(5.4), [2.3])
    assert texts(events) == expected_finals(5.4, [2.3])
    assert events[-1]["type"] == "done"
    assert not server.drops
    assert len(server.starts) == 2


async def test_a_done_before_the_end_of_the_audio_is_a_drop() -> None:
    server = Scripted("2500 samples", keeps=False, closes_with=1001)
    server.sends_done = True
    async with serving(server) as url:
        events = await stream(StreamClient(url, sample_rate=RATE), ramp(4.0))
    assert texts(events) == expected_finals(4.0)
    assert [event["type"] for event in events].count("done") == 1


@settings(max_examples=15, deadline=None)
@given(
    drops=st.lists(st.sampled_from(MOMENTS), max_size=4),
    keeps=st.booleans(),
    seconds=st.sampled_from([0.0, 0.1, 3.0, 6.2]),
)
async def test_any_row_of_drops_loses_and_doubles_no_final(
    drops: list[str], keeps: bool, seconds: float
) -> None:
    drops = [drop for drop in drops if drop != "ready"]
    drops = [after for drop in drops for after in (drop, "ready")]
    server = Scripted(*drops, keeps=keeps)
    async with serving(server) as url:
        events = await stream(StreamClient(url, sample_rate=RATE), ramp(seconds))
    assert texts(events) == expected_finals(seconds)


async def test_a_stream_survives_a_restart_of_the_server() -> None:
    first, second = Scripted(keeps=False), Scripted(keeps=False)
    first.processes.clear()
    async with serving(first) as url:
        streaming = asyncio.create_task(stream(StreamClient(url, sample_rate=RATE), ramp(6.0)))
        await until(first, RATE)
    await asyncio.sleep(0.3)  # nobody listens
    async with serving(second, urlsplit(url).port or 0):
        assert texts(await streaming) == expected_finals(6.0)


async def test_resuming_waits_for_a_busy_server() -> None:
    server = Scripted("2500 samples")
    async with serving(server) as url:
        client = StreamClient(url, sample_rate=RATE)
        async with client:
            server.reject(HTTPStatus.SERVICE_UNAVAILABLE, "full", Retry_After="0.1")
            server.reject(HTTPStatus.BAD_GATEWAY, "nobody there")
            await client.send(ramp(4.0))
            await client.finish()
            assert texts([event async for event in client]) == expected_finals(4.0)
    assert not server.rejections


async def test_a_first_connect_waits_for_a_busy_server() -> None:
    server = Scripted()
    server.reject(HTTPStatus.SERVICE_UNAVAILABLE, "full", Retry_After="0.1")
    server.reject(HTTPStatus.BAD_GATEWAY, "nobody there")
    async with serving(server) as url:
        client = StreamClient(url, sample_rate=RATE)
        assert texts(await stream(client, ramp(2.0))) == expected_finals(2.0)
    assert not server.rejections


async def test_a_first_connect_waits_after_a_close_with_1013() -> None:
    server = Scripted()
    busy = closing(1013, code="overloaded", message="no stream is free", retry_after_s=0.1)
    rejected = asyncio.Event()

    async def busy_once(socket: ServerConnection) -> None:
        await (server(socket) if rejected.is_set() else busy(socket))
        rejected.set()

    async with serving(busy_once) as url:
        client = StreamClient(url, sample_rate=RATE)
        assert texts(await stream(client, ramp(2.0))) == expected_finals(2.0)
    assert rejected.is_set()


async def test_a_first_connect_waits_for_a_server_that_starts() -> None:
    async with serving(Scripted()) as url:
        pass
    client = StreamClient(url, sample_rate=RATE)
    streaming = asyncio.create_task(stream(client, ramp(2.0)))
    await asyncio.sleep(0.2)
    async with serving(Scripted(), urlsplit(url).port or 0):
        assert texts(await streaming) == expected_finals(2.0)


async def test_a_server_that_asks_for_a_later_attempt_than_retry_s_is_not_waited_for() -> None:
    server = Scripted()
    server.reject(HTTPStatus.SERVICE_UNAVAILABLE, "full", Retry_After="3600")
    async with asyncio.timeout(WAIT_S), serving(server) as url:
        with pytest.raises(ServerBusy, match="full"):
            await StreamClient(url).__aenter__()


async def test_a_finalized_utterance_ends_exactly_there() -> None:
    server = Scripted()
    async with serving(server) as url:
        client = StreamClient(url, sample_rate=RATE)
        events = await stream(client, ramp(3.0), [0.25, 1.5, 2.0])
    assert texts(events) == expected_finals(3.0, [0.25, 1.5])


async def test_a_client_without_audio_sends_keepalives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_client, "KEEPALIVE_S", 0.02)
    server = Scripted()
    async with serving(server) as url, StreamClient(url, sample_rate=RATE) as client:
        await eventually(lambda: server.controls.count("keepalive") >= 3)
        await client.finish()
        assert [event["type"] async for event in client] == ["done"]


async def test_the_audio_kept_for_a_resume_is_bounded() -> None:
    server = Scripted("5000 samples", keeps=False)
    server.utterance_s = 1e6
    async with serving(server) as url:
        client = StreamClient(url, sample_rate=RATE, buffer_s=1.0)
        events = await stream(client, ramp(8.0))
    from_s = server.starts[1]["resume"]["from_s"]
    assert 3.0 <= from_s <= 7.0
    assert texts(events) == [f"{round(from_s * RATE)}-7999"]


async def test_a_resume_carries_the_speakers_and_the_number_of_utterances() -> None:
    server = Scripted("3500 samples", keeps=False, closes_with=1011)  # what it sent arrives
    async with serving(server) as url:
        events = await stream(StreamClient(url, sample_rate=RATE, speaker=True), ramp(5.0))
    finals = [event for event in events if event["type"] == "final"]
    assert [final["utterance"] for final in finals] == [0, 1, 2, 3, 4]
    resume = server.starts[1]["resume"]
    assert resume["utterances"] == 3
    assert resume["voices"] == {
        "SPEAKER_00": "SPEAKER_00 of 2000-2999",
        "SPEAKER_01": "SPEAKER_01 of 1000-1999",
    }


async def test_only_the_latest_of_unread_partials_is_kept() -> None:
    server = Scripted()
    async with serving(server) as url, StreamClient(url, sample_rate=RATE) as client:
        await client.send(ramp(20.0))
        await client.finish()
        await eventually(lambda: "end" in server.controls)
        events = [event["type"] async for event in client]
    assert events.count("final") == 20
    # one before each final, and what is read while the last window of 2 s is still received
    assert events.count("partial") <= 20 + 20 + 1 < server.received // 200


async def test_a_finished_stream_takes_no_more_audio() -> None:
    async with serving(Scripted()) as url, StreamClient(url, sample_rate=RATE) as client:
        await client.finish()
        with pytest.raises(StreamError, match="finished"):
            await client.send(ramp(0.1))


async def test_leaving_the_context_closes_the_socket_with_1000() -> None:
    server = Scripted()
    async with serving(server) as url:
        async with StreamClient(url, sample_rate=RATE) as client:
            await client.send(ramp(0.5))
            await until(server, 100)
        await eventually(lambda: server.close_codes)
    assert server.close_codes == [1000]
    assert len(server.starts) == 1


@pytest.mark.parametrize(("header", "wait_s"), [({"Retry_After": "7"}, 7.0), ({}, 2.0)])
async def test_a_503_at_the_handshake_raises_server_busy(
    header: dict[str, str], wait_s: float
) -> None:
    server = Scripted()
    server.reject(HTTPStatus.SERVICE_UNAVAILABLE, "all streams are taken", **header)
    async with serving(server) as url:
        with pytest.raises(ServerBusy, match="all streams are taken") as busy:
            await StreamClient(url, retry_s=0).__aenter__()
    assert busy.value.retry_after_s == wait_s


READY = json.dumps(
    {"type": "ready", "session": "s", "resumed": False, "audio_from_s": 0, "window_s": 5}
)


def closing(close_code: int, **error: Any) -> Serve:
    """A server that sends an error and closes: at once with 1013, else at the first audio."""

    async def serve_once(socket: ServerConnection) -> None:
        await socket.recv()
        if close_code != 1013:
            await socket.send(READY)
            await socket.recv()
        if error:
            await socket.send(json.dumps({"type": "error", **error}))
            await socket.send(json.dumps({"type": "done"}))
        await socket.close(close_code, "the reason")

    return serve_once


async def test_a_close_with_1013_raises_server_busy() -> None:
    error = {"code": "overloaded", "message": "no stream is free", "retry_after_s": 5}
    async with serving(closing(1013, **error)) as url:
        with pytest.raises(ServerBusy, match="no stream is free") as busy:
            await StreamClient(url, retry_s=0).__aenter__()
    assert busy.value.retry_after_s == 5


@pytest.mark.parametrize("code", [1000, 1003, 1008, 4001])
@pytest.mark.parametrize(
    ("error", "expected"),
    [({"code": "invalid_request", "message": "no"}, "invalid_request"), ({}, "closed_")],
)
async def test_a_rejection_ends_the_stream_instead_of_resuming_it(
    code: int, error: dict[str, str], expected: str
) -> None:
    async with serving(closing(code, **error)) as url:
        with pytest.raises(StreamError, match=expected) as rejected:
            await stream(StreamClient(url, sample_rate=RATE), ramp(1.0))
    assert not isinstance(rejected.value, ConnectionLost)


async def test_an_unknown_route_raises_the_http_status() -> None:
    server = Scripted()
    server.reject(HTTPStatus.NOT_FOUND, "not here")
    async with serving(server) as url:
        with pytest.raises(StreamError, match="http_404: not here"):
            await StreamClient(url).__aenter__()


@pytest.mark.parametrize("message", ["[1, 2]", "no json", '{"type": "final", "text": "no end"}'])
async def test_an_invalid_message_of_the_server_is_a_protocol_error(message: str) -> None:
    async def invalid(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(READY)
        await socket.send(message)
        await socket.wait_closed()

    async with serving(invalid) as url:
        with pytest.raises(StreamError, match="protocol_error"):
            await stream(StreamClient(url, sample_rate=RATE), ramp(1.0))


async def test_an_unreachable_server_fails_after_retry_s() -> None:
    async with serving(Scripted()) as url:
        pass
    for retry_s in (0.0, 0.3):
        with pytest.raises(ConnectionLost):
            await StreamClient(url, retry_s=retry_s).__aenter__()


async def test_resuming_stops_after_retry_s() -> None:
    server = Scripted("500 samples")
    async with serving(server) as url:
        for _ in range(100):
            server.reject(HTTPStatus.BAD_GATEWAY, "nobody there")
        server.rejections, later = [], server.rejections
        async with StreamClient(url, sample_rate=RATE, retry_s=0.3) as client:
            server.rejections = later
            await client.send(ramp(1.0))
            with pytest.raises(ConnectionLost, match="nobody there"):
                [event async for event in client]
            with pytest.raises(ConnectionLost):
                await client.send(ramp(1.0))


async def test_resuming_stops_after_drops_without_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_client, "MAX_STALLED_DROPS", 3)
    server = Scripted(*["500 samples"] * 100, keeps=False)
    async with serving(server) as url:
        with pytest.raises(ConnectionLost):
            await stream(StreamClient(url, sample_rate=RATE), ramp(2.0))
    assert len(server.starts) <= 5
