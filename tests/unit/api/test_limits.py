"""The bounds of a request: bytes, parts, requests at once, seconds; nothing is left over."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

import api.limits
from speech.transcript import Transcript
from tests.unit.fake_service import FakeService, app_of, client_of

MB = 1024**2
HEAD = b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'
TAIL = (
    b'\r\n--x\r\nContent-Disposition: form-data; name="request_json"\r\n\r\n'
    b'{"settings":{}}\r\n--x--\r\n'
)


class RawRequest:
    """A request whose body is given chunk by chunk; ``taken`` counts the chunks the app read."""

    def __init__(self, app: FastAPI, *, content_length: int | None = None) -> None:
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        if content_length is not None:
            headers.append((b"content-length", str(content_length).encode()))
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/process",
            "query_string": b"",
            "headers": headers,
        }
        self.reads_answer = True
        self.taken = 0
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self._body = b""
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._waiting = asyncio.Event()
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._inbox.empty():
            self._waiting.set()
        message = await self._inbox.get()
        self.taken += 1
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        if not self.reads_answer:
            await asyncio.Event().wait()
        self.status = message.get("status", self.status)
        self.headers |= dict(message.get("headers", []))
        self._body += message.get("body", b"")

    async def settle(self) -> None:
        """Until the app waits for more of the body, or has answered."""
        waiting = asyncio.create_task(self._waiting.wait())
        await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def feed(self, *chunks: bytes) -> None:
        """Send a part of the body and wait until the app has dealt with it."""
        self._waiting.clear()
        for chunk in chunks:
            self._inbox.put_nowait({"type": "http.request", "body": chunk, "more_body": True})
        await self.settle()

    def finish(self, chunk: bytes) -> None:
        """Send the rest of the body."""
        self._inbox.put_nowait({"type": "http.request", "body": chunk, "more_body": False})

    def disconnect(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            await self.task
        body: dict[str, Any] = json.loads(self._body)
        return body


class Gate:
    """A service call that waits until it is released."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> Transcript:
        self.entered.set()
        try:
            await self.leave.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return Transcript(1.0)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Counts the temporary files that are open, unnamed ones included."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def count() -> int:
        links = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        return sum(str(fd.readlink()).startswith(str(tmp_path)) for fd in links)

    return count


async def post(app: FastAPI, audio: bytes = b"x", **fields: str) -> Any:
    data = {"request_json": '{"settings":{}}'} | fields
    async with client_of(app) as client:
        return await client.post("/v1/process", files={"audio": ("a", audio)}, data=data)


# ---------------------------------------------------------------- bytes


async def test_a_declared_length_above_the_bound_is_refused_before_a_byte_is_read(service):
    upload = RawRequest(app_of(service, max_upload_bytes=MB), content_length=MB + 1)
    body = await upload.answer()
    assert upload.status == 413
    assert body == {
        "detail": "The request body is larger than 1048576 bytes.",
        "code": "audio_too_large",
    }
    assert upload.taken == 0


async def test_an_upload_without_length_is_cut_at_the_bound(service):
    upload = RawRequest(app_of(service, max_upload_bytes=3 * MB))
    await upload.feed(HEAD, *[bytes(MB)] * 10)
    body = await upload.answer()
    assert (upload.status, body["code"]) == (413, "audio_too_large")
    assert upload.taken == 4  # the head, two that fit, and the one that did not
    assert service.calls == []


async def test_a_wrong_declared_length_does_not_lift_the_bound(service):
    upload = RawRequest(app_of(service, max_upload_bytes=MB), content_length=10)
    await upload.feed(HEAD, bytes(2 * MB))
    await upload.answer()
    assert upload.status == 413


async def test_a_body_of_exactly_the_bound_is_taken(service):
    body = HEAD + b"audio" + TAIL
    for bound, status in ((len(body), 200), (len(body) - 1, 413)):
        upload = RawRequest(app_of(service, max_upload_bytes=bound))
        upload.finish(body)
        await upload.answer()
        assert upload.status == status
    assert [data for data, _ in service.calls] == [b"audio"]


async def test_a_large_upload_is_spooled_to_disk_and_deleted_before_the_models_run(
    service, spooled
):
    gate = service.answer = Gate()
    upload = RawRequest(app_of(service))
    await upload.feed(HEAD, bytes(2 * MB))
    assert spooled() == 1
    upload.finish(TAIL)
    await gate.entered.wait()
    assert spooled() == 0
    gate.leave.set()
    await upload.answer()
    assert (upload.status, len(service.calls[0][0])) == (200, 2 * MB)


async def test_nothing_stays_on_disk_after_a_refused_upload(service, spooled):
    upload = RawRequest(app_of(service, max_upload_bytes=3 * MB))
    await upload.feed(HEAD, bytes(2 * MB))
    assert spooled() == 1
    await upload.feed(bytes(2 * MB))
    await upload.answer()
    assert upload.status == 413
    assert spooled() == 0


async def test_nothing_stays_on_disk_after_a_disconnect_in_mid_upload(service, spooled):
    upload = RawRequest(app_of(service))
    await upload.feed(HEAD, bytes(2 * MB))
    assert spooled() == 1
    upload.disconnect()
    await upload.answer()
    assert spooled() == 0
    assert service.calls == []


async def test_nothing_stays_on_disk_after_a_cancelled_upload(service, spooled):
    upload = RawRequest(app_of(service))
    await upload.feed(HEAD, bytes(2 * MB))
    assert spooled() == 1
    upload.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload.task
    assert spooled() == 0


# ---------------------------------------------------------------- parts


async def test_a_text_part_is_bounded(service):
    request = '{"settings":{}, "padding":"%s"}'
    assert (await post(app_of(service), request_json=request % ("x" * 1000))).status_code == 200
    answer = await post(app_of(service), request_json=request % ("x" * MB))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_the_number_of_text_parts_is_bounded(service):
    answer = await post(app_of(service), **{f"field{i}": "" for i in range(50)})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_the_number_of_files_is_bounded_and_those_before_are_closed(service, spooled):
    upload = RawRequest(app_of(service))
    await upload.feed(HEAD, bytes(2 * MB), *[b"\r\n" + HEAD] * 16)
    body = await upload.answer()
    assert (upload.status, body["code"]) == (400, "invalid_request")
    assert spooled() == 0


# ---------------------------------------------------------------- requests at once


@pytest.fixture
async def busy(service: FakeService) -> AsyncIterator[tuple[FastAPI, RawRequest, Gate]]:
    """An app with one place, the request that holds it, and the gate that it waits at."""
    gate = service.answer = Gate()
    app = app_of(service, max_concurrent_requests=1)
    holder = RawRequest(app)
    holder.finish(HEAD + b"audio" + TAIL)
    await gate.entered.wait()
    yield app, holder, gate
    gate.leave.set()
    await asyncio.gather(holder.task, return_exceptions=True)


async def refused(app: FastAPI) -> bool:
    """Whether one more upload is refused; that must not need a byte of its body."""
    upload = RawRequest(app)
    await upload.settle()
    if not upload.task.done():
        upload.disconnect()
        await upload.task
        return False
    body = await upload.answer()
    assert (upload.status, body["code"]) == (503, "overloaded")
    assert int(upload.headers[b"retry-after"]) >= 1
    assert upload.taken == 0
    return True


async def test_one_request_too_many_is_refused_at_once_and_may_retry(busy):
    app, holder, gate = busy
    assert await refused(app)
    gate.leave.set()
    await holder.answer()
    assert holder.status == 200
    assert not await refused(app)


async def test_an_upload_in_progress_holds_its_place(service):
    app = app_of(service, max_concurrent_requests=1)
    upload = RawRequest(app)
    await upload.feed(HEAD)
    assert await refused(app)
    upload.disconnect()
    await upload.task
    assert not await refused(app)


async def test_light_routes_answer_while_all_places_are_taken(busy):
    app, _, _ = busy
    async with client_of(app) as client:
        for path in ("/health", "/ready", "/v1/models"):
            assert (await client.get(path)).status_code == 200


async def test_a_client_that_disconnects_cancels_the_work_and_frees_the_place(busy):
    app, holder, gate = busy
    holder.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder.task
    assert gate.cancelled
    assert not await refused(app)


async def test_a_request_that_fails_frees_its_place(service):
    app = app_of(service, max_concurrent_requests=1)
    service.answer = RuntimeError("boom")
    assert (await post(app)).status_code == 500
    assert (await post(app, audio=b"")).status_code == 400
    assert not await refused(app)


# ---------------------------------------------------------------- seconds


async def test_a_request_beyond_its_deadline_is_cancelled_and_answered(service):
    gate = service.answer = Gate()
    app = app_of(service, request_timeout_s=0.05, max_concurrent_requests=1)
    answer = await post(app)
    assert answer.status_code == 504
    assert answer.json() == {
        "detail": "The request did not finish within 0.05 seconds.",
        "code": "deadline_exceeded",
    }
    assert gate.cancelled
    assert not await refused(app)


async def test_an_upload_that_never_ends_meets_the_deadline_too(service):
    upload = RawRequest(app_of(service, request_timeout_s=0.05))
    await upload.feed(HEAD)
    await upload.answer()
    assert upload.status == 504


async def test_a_client_that_does_not_read_its_answer_frees_its_place_after_the_deadline(
    service, monkeypatch
):
    monkeypatch.setattr(api.limits, "ANSWER_GRACE_S", 0.05)
    app = app_of(service, request_timeout_s=0.05, max_concurrent_requests=1)
    upload = RawRequest(app)
    upload.reads_answer = False
    upload.finish(HEAD + b"audio" + TAIL)
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await upload.task
    assert not await refused(app)


async def test_a_timeout_of_the_service_itself_is_not_taken_for_the_deadline(service):
    service.answer = TimeoutError()
    assert (await post(app_of(service))).status_code == 500
