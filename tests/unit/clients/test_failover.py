"""A stream over several addresses of a service."""

import asyncio
from http import HTTPStatus

import pytest

from clients.failover import ConnectionLost, ServerBusy, StreamError
from clients.stream_client import StreamClient
from tests.unit.clients.scripted_server import (
    RATE,
    WAIT_S,
    Scripted,
    expected_finals,
    ramp,
    serving,
    texts,
)
from tests.unit.clients.test_stream_client import stream, until


async def unreachable() -> str:
    async with serving(Scripted()) as url:
        return url


async def test_the_first_address_is_used_while_it_works() -> None:
    first, second = Scripted(), Scripted()
    async with serving(first) as a, serving(second) as b:
        for _ in range(3):
            client = StreamClient([a, b], sample_rate=RATE)
            assert texts(await stream(client, ramp(1.0))) == expected_finals(1.0)
    assert (len(first.starts), len(second.starts)) == (3, 0)


@pytest.mark.parametrize("retry_s", [0.0, 30.0])
async def test_a_first_connect_takes_the_next_address_of_an_unreachable_one(retry_s: float) -> None:
    server = Scripted()
    async with serving(server) as url:
        addresses = [await unreachable(), await unreachable(), url]
        client = StreamClient(addresses, sample_rate=RATE, retry_s=retry_s)
        assert texts(await stream(client, ramp(1.0))) == expected_finals(1.0)


@pytest.mark.parametrize("status", [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.BAD_GATEWAY])
async def test_a_busy_or_broken_address_is_left_at_once_for_the_next(status: HTTPStatus) -> None:
    busy, free = Scripted(), Scripted()
    busy.reject(status, "not now", Retry_After="3600")
    async with serving(busy) as a, serving(free) as b:
        client = StreamClient([a, b], sample_rate=RATE)
        assert texts(await stream(client, ramp(1.0))) == expected_finals(1.0)
    assert (len(busy.starts), len(free.starts)) == (0, 1)


async def test_a_stream_whose_server_dies_ends_on_the_next_with_the_same_text() -> None:
    first, second = Scripted(keeps=False), Scripted()
    first.processes.clear()
    async with serving(second) as b:
        async with serving(first) as a:
            client = StreamClient([a, b], sample_rate=RATE)
            streaming = asyncio.create_task(stream(client, ramp(6.0)))
            await until(first, RATE)
        assert texts(await streaming) == expected_finals(6.0)
    assert second.starts[0]["resume"]["session"] in first.sessions


@pytest.mark.parametrize("closes_with", [None, 1001, 1011, 1012])
async def test_a_dropped_stream_resumes_at_the_next_address(closes_with: int | None) -> None:
    first = Scripted("2500 samples", closes_with=closes_with)
    second = Scripted("1000 samples", closes_with=closes_with)
    async with serving(first) as a, serving(second) as b:
        client = StreamClient([a, b], sample_rate=RATE)
        assert texts(await stream(client, ramp(5.4))) == expected_finals(5.4)
    assert second.starts[0]["resume"]["session"] in first.sessions
    assert len(first.starts) + len(second.starts) == 3, "each drop was followed by a new socket"


async def test_an_address_is_not_tried_before_its_retry_after() -> None:
    first, second = Scripted(), Scripted()
    first.reject(HTTPStatus.SERVICE_UNAVAILABLE, "full", Retry_After="3600")
    for _ in range(3):
        second.reject(HTTPStatus.BAD_GATEWAY, "nobody there")
    async with serving(first) as a, serving(second) as b:
        client = StreamClient([a, b], sample_rate=RATE)
        assert texts(await stream(client, ramp(1.0))) == expected_finals(1.0)
    assert (len(first.starts), len(second.starts)) == (0, 1)


async def test_the_client_gives_up_after_retry_s_when_no_address_works() -> None:
    full = Scripted()
    full.reject(HTTPStatus.SERVICE_UNAVAILABLE, "full", Retry_After="3600")
    async with serving(full) as busy:
        for addresses, error in (
            ([busy, await unreachable()], ConnectionLost),
            ([await unreachable(), await unreachable()], ConnectionLost),
        ):
            async with asyncio.timeout(WAIT_S):
                with pytest.raises(error):
                    await StreamClient(addresses, retry_s=0.3).__aenter__()
    full.reject(HTTPStatus.SERVICE_UNAVAILABLE, "full", Retry_After="3600")
    async with serving(full) as busy:
        with pytest.raises(ServerBusy, match="full"):
            await StreamClient([await unreachable(), busy], retry_s=0).__aenter__()


async def test_a_rejection_is_not_taken_to_the_next_address() -> None:
    server, other = Scripted(), Scripted()
    server.reject(HTTPStatus.FORBIDDEN, "no such key")
    async with serving(server) as a, serving(other) as b:
        with pytest.raises(StreamError, match="http_403: no such key"):
            await StreamClient([a, b]).__aenter__()
    assert not other.starts


def test_a_client_needs_an_address() -> None:
    with pytest.raises(ValueError, match="no address"):
        StreamClient([])
