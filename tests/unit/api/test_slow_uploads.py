"""Clients that send their requests slowly: how long each is waited for, and that others get in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import api.limits
from api.errors import STATUS
from api.limits import DISPLACEABLE_AFTER_S, Places, Upload
from speech.errors import Overloaded, UploadTooSlow
from tests.unit.fake_service import FakeService, app_of, listening
from tests.unit.virtual_time import run_in_virtual_time

RATE = 1000
STALL_S = 10.0
WAIT_S = 30.0
"""More than anything here takes."""


def upload_of(chunks: Iterable[tuple[float, int]]) -> Upload:
    """A body whose chunks come after the given waits, each of a number of bytes."""
    remaining = list(chunks)

    async def receive() -> dict[str, Any]:
        wait_s, size = remaining.pop(0)
        await asyncio.sleep(wait_s)
        return {"type": "http.request", "body": bytes(size), "more_body": bool(remaining)}

    return Upload(receive, 1 << 30, 0, RATE, STALL_S)


async def outcome_of(upload: Upload, app_s: float = 0.0) -> str:
    """How reading the body ends; the app works for ``app_s`` after each chunk."""
    try:
        more = True
        while more:
            more = (await upload())["more_body"]
            await asyncio.sleep(app_s if more else 0)
    except UploadTooSlow as error:
        return error.code
    return "complete"


def seconds_of(outcome: str, *chunks: tuple[float, int], app_s: float = 0.0) -> float:
    """Seconds until reading a body ends, which has to be with this outcome."""

    async def work() -> float:
        assert await outcome_of(upload_of(chunks), app_s) == outcome
        return asyncio.get_running_loop().time()

    return run_in_virtual_time(work())


read = partial(seconds_of, "complete")
refused_after = partial(seconds_of, "upload_too_slow")


# ---------------------------------------------------------------- pace


def test_a_silence_is_waited_for_up_to_the_bound() -> None:
    assert read((0, 1), (STALL_S - 0.1, 1)) == pytest.approx(STALL_S - 0.1)
    assert refused_after((0, 1), (STALL_S + 0.1, 1)) == pytest.approx(STALL_S)


def test_a_body_that_never_begins_is_refused() -> None:
    assert refused_after((1e6, 1)) == pytest.approx(STALL_S)


def test_an_upload_at_the_least_rate_may_take_as_long_as_it_needs() -> None:
    assert read(*[(1.0, RATE)] * 3600) == pytest.approx(3600)
    assert read(*[(9.0, 9 * RATE)] * 100) == pytest.approx(900)


def test_an_upload_at_half_the_least_rate_is_refused_once_it_is_behind_by_the_bound() -> None:
    assert refused_after(*[(1.0, RATE // 2)] * 100) == pytest.approx(2 * STALL_S, abs=1)


def test_single_bytes_in_time_do_not_keep_an_upload_alive() -> None:
    assert refused_after(*[(STALL_S / 2, 1)] * 100) == pytest.approx(STALL_S, abs=0.1)


def test_a_fast_beginning_does_not_allow_a_slow_rest() -> None:
    assert refused_after((0, 100 * RATE), *[(1.0, 1)] * 100) == pytest.approx(STALL_S, abs=0.1)


def test_an_upload_that_stalled_and_goes_on_has_the_whole_bound_again() -> None:
    stall = (STALL_S - 0.1, 100 * RATE)
    assert read(stall, stall, stall, (0, 1)) == pytest.approx(3 * STALL_S, abs=1)


def test_the_time_that_the_app_takes_between_two_reads_does_not_count() -> None:
    assert read((0, 1), (1.0, 1), (1.0, 1), app_s=100.0) == pytest.approx(202)


def test_nothing_is_bounded_once_the_body_is_complete() -> None:
    async def work() -> None:
        messages = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0 if len(messages) == 2 else 100 * STALL_S)
            return messages.pop(0)

        upload = Upload(receive, 1 << 30, 0, RATE, STALL_S)
        await upload()
        assert (await upload())["type"] == "http.disconnect"

    run_in_virtual_time(work())


# ---------------------------------------------------------------- places


def test_a_new_request_gets_the_place_of_the_upload_that_is_furthest_behind() -> None:
    async def work() -> None:
        places = Places(3)
        steady = upload_of([(1.0, RATE)] * 20)
        slow, slower = upload_of([(1.0, RATE // 2)] * 20), upload_of([(1.0, 1)] * 20)
        outcomes = []
        for upload in (steady, slow, slower):
            places.take(upload)
            outcomes.append(asyncio.create_task(outcome_of(upload)))
        await asyncio.sleep(DISPLACEABLE_AFTER_S - 0.1)
        with pytest.raises(Overloaded, match="3 requests"):
            places.take(upload_of([]))
        await asyncio.sleep(3)
        places.take(upload_of([(0, 1)]))
        assert await outcomes[2] == "upload_too_slow"
        places.take(upload_of([(0, 1)]))
        assert await outcomes[1] == "upload_too_slow"
        assert asyncio.get_running_loop().time() < STALL_S
        assert await outcomes[0] == "complete"

    run_in_virtual_time(work())


def test_a_request_whose_body_is_complete_keeps_its_place_however_slowly_it_came() -> None:
    async def work() -> None:
        places = Places(1)
        upload = upload_of([(STALL_S / 2, 1)])
        places.take(upload)
        assert await outcome_of(upload) == "complete"
        await asyncio.sleep(100)
        with pytest.raises(Overloaded):
            places.take(upload_of([]))
        places.leave(upload)
        places.take(upload_of([]))

    run_in_virtual_time(work())


def test_an_upload_that_lost_its_place_ends_even_if_its_last_bytes_came_at_that_moment() -> None:
    async def work() -> None:
        places = Places(1)
        upload = upload_of([(DISPLACEABLE_AFTER_S + 1, 1), (0, 1)])
        places.take(upload)
        await upload()
        places.take(newer := upload_of([]))
        assert await outcome_of(upload) == "upload_too_slow"
        places.leave(upload)  # the request ends, and must not free the place of the newer one
        with pytest.raises(Overloaded):
            places.take(upload_of([]))
        places.leave(newer)

    run_in_virtual_time(work())


# ---------------------------------------------------------------- routes


BEGUN = {
    "multipart/form-data": b"--x\r\nContent-Disposition: form-data",
    "application/x-www-form-urlencoded": b"request_json=",
    "application/json": b'{"config":',
}
"""How a body begins, by its type."""


def post_routes() -> Iterator[tuple[str, str]]:
    """Each route that reads a body, with the types of body that it reads."""
    for path, operations in app_of(FakeService()).openapi()["paths"].items():
        for kind in operations.get("post", {}).get("requestBody", {}).get("content", {}):
            yield path, kind
            if kind == "multipart/form-data":
                yield path, "application/x-www-form-urlencoded"


@pytest.mark.parametrize(("path", "kind"), [*post_routes()])
async def test_a_body_that_stalls_is_answered_on_every_route(path: str, kind: str) -> None:
    service = FakeService()
    chunks = [BEGUN[kind]]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not chunks:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": chunks.pop(), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    headers = [(b"content-type", f"{kind}; boundary=x".encode())]
    async with asyncio.timeout(WAIT_S):
        await app_of(service, upload_stall_timeout_s=0.05)(
            {**scope, "headers": headers}, receive, send
        )
    assert sent[0]["status"] == STATUS["upload_too_slow"] == 408
    assert b"slower than 2048 bytes per second" in sent[1]["body"]
    assert service.calls == []


# ---------------------------------------------------------------- real sockets


class Trickler:
    """A client that sends a byte of its form now and then."""

    def __init__(self, address: str) -> None:
        self._port = int(address.rpartition(":")[2])
        self.answer = b""

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.suppress(ConnectionError):
            writer.write(
                b"POST /v1/process HTTP/1.1\r\nHost: speech\r\nContent-Length: 1000000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            answered = asyncio.create_task(reader.read(1000))
            while not answered.done():
                writer.write(b"C")
                await writer.drain()
                await asyncio.wait([answered], timeout=0.02)
            self.answer = await answered
        writer.close()


@contextlib.asynccontextmanager
async def trickling(address: str, count: int) -> AsyncIterator[list[Trickler]]:
    clients = [Trickler(address) for _ in range(count)]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    try:
        yield clients
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answered(address: str) -> httpx.Response:
    """The answer to a normal client, which retries after a 503."""
    async with httpx.AsyncClient(base_url=address) as client:
        while True:
            answer = await client.post(
                "/v1/process", files={"audio": b"x"}, data={"request_json": '{"settings":{}}'}
            )
            if answer.status_code != 503:
                return answer
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("times", [1, 10])
async def test_clients_that_trickle_do_not_block_a_normal_client(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.limits, "DISPLACEABLE_AFTER_S", 0.1)
    places = 8
    app: FastAPI = app_of(FakeService(), max_concurrent_requests=places)
    async with (
        asyncio.timeout(WAIT_S),
        listening(app) as address,
        trickling(address, places * times) as clients,
    ):
        for _ in range(3):
            assert (await answered(address)).status_code == 200
        displaced = [client for client in clients if b" 408 " in client.answer]
        assert displaced
        assert all(b"upload_too_slow" in client.answer for client in displaced)


def test_a_drain_takes_no_request_and_waits_for_those_that_run() -> None:
    async def work() -> None:
        places = Places(2)
        upload = upload_of([])
        places.take(upload)
        drained = asyncio.create_task(places.drain())
        await asyncio.sleep(1)
        with pytest.raises(Overloaded, match="being stopped"):
            places.take(upload_of([]))
        assert not drained.done()
        places.leave(upload)
        await drained

    run_in_virtual_time(work())
