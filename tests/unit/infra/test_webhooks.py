"""Webhooks against a real server: content, signature, retries, allowed addresses."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from openai import OpenAI
from pydantic_core import from_json

from infra.guarded_http import Address, GuardedHttp, any_address, is_public, parse_url
from infra.webhooks import Webhooks, signature
from speech.errors import InvalidRequest
from speech.jobs.job_worker import Progress
from speech.jobs.states import Job
from tests.unit.job_service import SECRET, Jobs, jobs_in


@dataclass
class Receiver:
    """An HTTP server that gives scripted answers, and repeats the last."""

    answers: list[bytes]
    port: int = 0
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")[1:-2]
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.seen.append((headers, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:  # never answers
            await reader.read()
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            await writer.drain()
            writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/done"


def status(code: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} X", "Content-Length: 0", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.asynccontextmanager
async def receiving(*answers: bytes) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(answers))
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


@pytest.fixture
def jobs(tmp_path: Path):
    jobs = jobs_in(tmp_path)
    yield jobs
    jobs.store.close()


async def deliver(jobs: Jobs, url: str, state: str) -> Job:
    """End a job with a webhook, and wait for the last state of the webhook."""
    job = jobs.desk.submit("", b"1", "{}", webhook_url=url)
    async with jobs.working():
        return await jobs.until(job.id, lambda job: job.webhook_state == state)


async def test_the_end_of_a_job_is_delivered_once_and_signed(jobs: Jobs) -> None:
    async with receiving(status(204)) as receiver:
        job = await deliver(jobs, receiver.url, "delivered")
    ((headers, body),) = receiver.seen
    message = from_json(body)
    assert message["type"] == "job.completed"
    assert message["data"] == {"status": "completed", "job_id": job.id, "error": None}
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == job.id
    # An independent implementation of the specification.
    OpenAI(api_key="-").webhooks.verify_signature(body, headers, secret=SECRET)
    with pytest.raises(Exception, match="signature"):
        OpenAI(api_key="-").webhooks.verify_signature(body + b" ", headers, secret=SECRET)


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks libraries."""
    body = b'{"test": 2432232314}'
    id = "msg_p5jXN8AQM9LWM0D4loKWxJek"
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(SECRET, id, 1614265330, body) == expected


def test_a_plain_secret_signs_too() -> None:
    assert signature("plain", "id", 1, b"{}") != signature("other", "id", 1, b"{}")


async def test_a_rejected_delivery_is_repeated_with_the_same_id(jobs: Jobs) -> None:
    async with receiving(status(500), status(302, "Location: /x"), status(200)) as receiver:
        job = await deliver(jobs, receiver.url, "delivered")
    assert job.webhook_attempts == 3
    assert {headers["webhook-id"] for headers, _ in receiver.seen} == {job.id}


async def test_a_receiver_that_rejects_every_attempt_ends_in_failed(jobs: Jobs) -> None:
    async with receiving(status(500)) as receiver:
        job = await deliver(jobs, receiver.url, "failed")
    assert (job.webhook_attempts, len(receiver.seen), job.state) == (3, 3, "completed")
    assert (job.webhook_error, job.webhook_due_at) == ("status 500", None)


async def test_a_host_that_resolves_to_a_private_address_is_a_failed_attempt(jobs: Jobs) -> None:
    jobs.webhooks = Webhooks(SECRET, timeout_s=10.0, http=GuardedHttp(resolve_host=private))
    job = await deliver(jobs, "http://example.org/done", "failed")
    assert job.webhook_error == "its host has no public address"


async def test_the_text_of_an_unexpected_error_is_withheld_from_the_owner(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(job: Job) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(jobs.webhooks, "deliver", fail)
    job = await deliver(jobs, "http://example.org/done", "failed")
    assert job.webhook_error == "internal error"


async def private(host: str, port: int) -> list[Address]:
    return [ipaddress.ip_address("10.0.0.1")]


async def test_a_receiver_that_never_answers_times_out(jobs: Jobs) -> None:
    jobs.webhooks.timeout_s = 3.0
    async with receiving(b"", status(200)) as receiver:
        job = jobs.desk.submit("", b"1", "{}", webhook_url=receiver.url)
        async with jobs.working():
            failed = await jobs.until(job.id, lambda job: job.webhook_error is not None)
            job = await jobs.until(job.id, lambda job: job.webhook_state == "delivered")
    assert failed.webhook_error == "no response within 3 s"
    assert (job.webhook_attempts, job.webhook_error) == (2, None)


async def test_an_endless_answer_is_not_read(jobs: Jobs) -> None:
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx"
    async with receiving(endless) as receiver:
        assert (await deliver(jobs, receiver.url, "delivered")).webhook_attempts == 1


async def test_a_refused_connection_is_a_failed_attempt(jobs: Jobs) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = await deliver(jobs, f"http://127.0.0.1:{port}", "failed")
    assert job.webhook_attempts == 3


async def test_a_name_that_cannot_be_resolved_is_a_failed_attempt(jobs: Jobs) -> None:
    for allowed in (any_address, is_public, parse_url):
        jobs.webhooks = Webhooks(SECRET, timeout_s=1.0, http=GuardedHttp(allowed))
        job = await deliver(jobs, f"http://{'a' * 64}.example/", "failed")
        assert job.webhook_attempts == 3


async def test_failed_and_cancelled_jobs_are_delivered_too(jobs: Jobs) -> None:
    async def fail(job: Job, data: bytes, progress: Progress) -> str:
        raise InvalidRequest("no such language")

    async with receiving(status(200)) as receiver:
        failing = jobs.desk.submit("", b"1", "{}", webhook_url=receiver.url)
        async with jobs.working(fail):
            await jobs.until(failing.id, lambda job: job.webhook_state == "delivered")
        cancelled = jobs.desk.submit("", b"1", "{}", webhook_url=receiver.url)
        jobs.desk.cancel("", cancelled.id)
        async with jobs.working():
            await jobs.until(cancelled.id, lambda job: job.webhook_state == "delivered")
    messages = [from_json(body) for _, body in receiver.seen]
    assert [message["type"] for message in messages] == ["job.failed", "job.cancelled"]
    assert messages[0]["data"]["error"] == "no such language"


# ---------------------------------------------------------------- allowed addresses


async def post(http: GuardedHttp, url: str) -> None:
    async with http.request("POST", parse_url(url), content=b"{}"):
        pass


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "2001:0:7f00:1::",
    ],
)
async def test_an_address_that_is_not_public_is_never_called(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidRequest):
        GuardedHttp().check(f"http://{host}/")
    GuardedHttp(any_address).check(f"http://{host}/")
    with pytest.raises(InvalidRequest, match="no public address"):
        await post(GuardedHttp(), f"http://{host}:9/")


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "017700000001", "0x7f000001", "0x7f.1", "127.1", "127.0.0.0x1", "0", "10.1",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127.0.0.1.", "2130706433.", "127。0。0。1",
        "localhost", "LOCALHOST.", "jobs.localhost", "169.254.43518",
    ],
)  # fmt: skip
def test_a_private_address_is_refused_beforehand_in_every_notation(host: str) -> None:
    with pytest.raises(InvalidRequest, match="no public address"):
        GuardedHttp().check(f"http://{host}/")
    GuardedHttp(any_address).check(f"http://{host}/")


@pytest.mark.parametrize("host", ["134744072", "8.8.8.8.", "example.org", "1e100.net", "0x.org"])
def test_public_addresses_and_names_are_accepted_beforehand(host: str) -> None:
    GuardedHttp().check(f"http://{host}/")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f.1", "2130706433", "[::ffff:7f00:1]"])
async def test_a_name_for_this_machine_is_not_called(host: str) -> None:
    async with receiving(status(200)) as receiver:
        with pytest.raises(InvalidRequest, match="no public address"):
            await post(GuardedHttp(), f"http://{host}:{receiver.port}/")
    assert receiver.seen == []


async def test_a_name_is_called_at_the_address_that_was_checked() -> None:
    """A name that is public at the first resolution and private at the second is resolved once."""
    resolved = []

    async def rebind(host: str, port: int) -> list[Address]:
        resolved.append(host)
        return [ipaddress.ip_address("127.0.0.1" if len(resolved) == 1 else "127.0.0.2")]

    async with receiving(status(200)) as receiver:
        http = GuardedHttp(lambda address: str(address) == "127.0.0.1", rebind)
        await post(http, f"http://rebind.example:{receiver.port}/done")
    ((headers, _),) = receiver.seen
    assert resolved == ["rebind.example"]
    assert headers["host"] == f"rebind.example:{receiver.port}"


async def test_tls_asks_for_the_name_and_not_for_the_address() -> None:
    hello: list[bytes] = []

    async def read_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello.append(await reader.read(4096))
        writer.close()

    async def here(host: str, port: int) -> list[Address]:
        return [ipaddress.ip_address("127.0.0.1")]

    async with await asyncio.start_server(read_hello, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionError):
            await post(GuardedHttp(any_address, here), f"https://name.example:{port}/")
    assert b"name.example" in hello[0]


async def test_a_webhook_is_delivered_to_the_next_address_when_one_is_dead(jobs: Jobs) -> None:
    async def two(host: str, port: int) -> list[Address]:
        return [ipaddress.ip_address(address) for address in ("127.0.0.3", "127.0.0.1")]

    jobs.webhooks = Webhooks(SECRET, 10.0, GuardedHttp(any_address, two))
    async with receiving(status(200)) as receiver:
        job = await deliver(jobs, f"http://two.example:{receiver.port}/", "delivered")
    assert job.webhook_attempts == 1


async def test_a_webhook_to_this_machine_fails_unless_it_is_allowed(jobs: Jobs) -> None:
    jobs.webhooks = Webhooks(SECRET, timeout_s=1.0, http=GuardedHttp())
    async with receiving(status(200)) as receiver:
        job = await deliver(jobs, f"http://localhost:{receiver.port}/", "failed")
    assert (receiver.seen, job.webhook_attempts) == ([], 3)
