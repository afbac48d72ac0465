"""Files named by URL: real servers, and every way to reach an address that is not allowed."""

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from api.errors import STATUS
from infra.fetch import MAX_REDIRECTS, Fetcher
from infra.guarded_http import MAX_URL_CHARS, Address, GuardedHttp, is_public
from speech.errors import AudioTooLarge, FetchFailed, InvalidRequest
from tests.unit.fake_service import FakeService, app_of, client_of

PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"
"""Two addresses of this machine: in these tests the first counts as public."""
FILE = b"RIFF the whole file"


@dataclass
class Server:
    """A web server; ``answers`` are raw, by path, and ``asked`` are the requests it received."""

    host: str
    port: int = 0
    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)
    pause: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str = "/file") -> str:
        return f"http://{self.host}:{self.port}{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        writer.write(self.answers.get(head.split()[1].decode(), reply(404)))
        if b" /slow" in head:
            await self.pause.wait()
        writer.close()


def reply(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(to: str, status: int = 302) -> bytes:
    return reply(status, b"", f"Location: {to}")


@asynccontextmanager
async def listening(host: str) -> AsyncIterator[Server]:
    server = Server(host, answers={"/file": reply(200, FILE)})
    sockets = await asyncio.start_server(server.answer, host, 0)
    server.port = sockets.sockets[0].getsockname()[1]
    async with sockets:
        yield server
        server.pause.set()


@pytest.fixture
async def public() -> AsyncIterator[Server]:
    async with listening(PUBLIC) as server:
        yield server


@pytest.fixture
async def private() -> AsyncIterator[Server]:
    """A server that must not be reached."""
    async with listening(PRIVATE) as server:
        yield server
        assert server.asked == []


def counts_as_public(address: Address) -> bool:
    return str(address) == PUBLIC


def fetcher(max_bytes: int = 1000, timeout_s: float = 20.0, **parts: object) -> Fetcher:
    return Fetcher(max_bytes, timeout_s, GuardedHttp(**({"allowed": counts_as_public} | parts)))  # type: ignore[arg-type]


def names(hosts: dict[str, Sequence[str]]) -> Callable[[str, int], object]:
    """A name server; a host with several answers gets one after the other."""

    async def resolve(host: str, port: int) -> Sequence[Address]:
        answers = hosts.get(host, [host])
        answer = answers[0]
        if len(answers) > 1:
            hosts[host] = answers[1:]
        return [ipaddress.ip_address(part) for part in answer.split()]

    return resolve


# ---------------------------------------------------------------- which addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200",
        "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250",
        "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00::1",
        "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_outside_the_public_internet_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8"]
)
def test_addresses_of_the_public_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0", "0.0.0.0", "127.0.0.1.", "①②⑦.⓪.⓪.①",
        "169.254.169.254",
    ],
)  # fmt: skip
async def test_this_machine_is_not_reached_however_it_is_written(public: Server, host: str) -> None:
    with pytest.raises(InvalidRequest):
        await Fetcher(1000, 20.0, GuardedHttp()).fetch(f"http://{host}:{public.port}/file")
    assert public.asked == []


# ---------------------------------------------------------------- which URLs


async def test_a_file_is_fetched(public: Server) -> None:
    assert await fetcher().fetch(public.url()) == FILE
    (asked,) = public.asked
    assert asked.startswith(b"GET /file HTTP/1.1\r\n")
    assert f"Host: {PUBLIC}:{public.port}\r\n".encode() in asked


@pytest.mark.parametrize(
    "url",
    [
        "", "file", "/etc/passwd", "file:///etc/passwd", "ftp://127.0.0.1/file", "gopher://x/",
        "data:audio/wav;base64,UklGRg==", "concat:a|b", "//127.0.0.1/file", "http://", "http:///x",
        "http://user@127.0.0.1/", "http://user:secret@127.0.0.1/file", "http://[::1", "http://a:b/",
        "http://127.0.0.1:99999/", "http://x\r\nHost: y/", "\x00", "unix:///run/docker.sock",
    ],
)  # fmt: skip
async def test_a_url_that_is_not_plain_http_is_rejected(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await fetcher().fetch(url)
    assert "secret" not in refused.value.message


async def test_proxies_of_the_environment_are_not_used(
    public: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(PRIVATE) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url("/"))
        assert await fetcher().fetch(public.url()) == FILE
        assert not any(public.url().encode() in asked for asked in proxy.asked)


# ---------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(public: Server, status: int) -> None:
    public.answers["/moved"] = redirect("/file", status)
    assert await fetcher().fetch(public.url("/moved")) == FILE


async def test_a_redirect_to_a_private_address_is_not_followed(
    public: Server, private: Server
) -> None:
    public.answers["/1"] = redirect("/2")
    public.answers["/2"] = redirect(private.url())
    with pytest.raises(InvalidRequest, match="no public address"):
        await fetcher().fetch(public.url("/1"))


async def test_a_redirect_to_a_name_of_a_private_address_is_not_followed(
    public: Server, private: Server
) -> None:
    public.answers["/1"] = redirect(f"http://inside.example:{private.port}/file")
    with pytest.raises(InvalidRequest, match="no public address"):
        await fetcher(resolve_host=names({"inside.example": [PRIVATE]})).fetch(public.url("/1"))


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/file", "http://[::1"]
)
async def test_a_redirect_to_a_url_that_is_not_allowed_is_not_followed(
    public: Server, to: str
) -> None:
    public.answers["/1"] = redirect(to)
    with pytest.raises(InvalidRequest):
        await fetcher().fetch(public.url("/1"))
    assert len(public.asked) == 1


async def test_redirects_are_bounded(public: Server) -> None:
    for number in range(MAX_REDIRECTS + 1):
        public.answers[f"/{number}"] = redirect(f"/{number + 1}")
    public.answers[f"/{MAX_REDIRECTS + 1}"] = reply(200, FILE)
    assert await fetcher().fetch(public.url("/1")) == FILE
    public.asked.clear()
    with pytest.raises(FetchFailed, match="more than 3 redirects"):
        await fetcher().fetch(public.url("/0"))
    assert len(public.asked) == MAX_REDIRECTS + 1


async def test_a_redirect_without_a_location_is_an_error(public: Server) -> None:
    public.answers["/1"] = reply(302)
    with pytest.raises(FetchFailed, match="answered 302"):
        await fetcher().fetch(public.url("/1"))


# ---------------------------------------------------------------- names


async def test_a_name_that_is_looked_up_again_cannot_lead_elsewhere(
    public: Server, private: Server
) -> None:
    """The name server answers the second question with a private address."""
    resolve = names({"rebind.example": [PUBLIC, PRIVATE]})
    url = f"http://rebind.example:{public.port}/file"
    assert await fetcher(resolve_host=resolve).fetch(url) == FILE
    assert b"Host: rebind.example" in public.asked[0]


async def test_a_name_with_one_private_address_among_others_is_refused(
    public: Server, private: Server
) -> None:
    resolve = names({"both.example": [f"{PUBLIC} {PRIVATE}"]})
    with pytest.raises(InvalidRequest, match="no public address"):
        await fetcher(resolve_host=resolve).fetch(f"http://both.example:{public.port}/file")
    assert public.asked == []


async def test_a_name_without_an_address_is_refused_as_a_private_one_is() -> None:
    with pytest.raises(InvalidRequest, match="no public address"):
        await fetcher(resolve_host=names({"none.example": [""]})).fetch("http://none.example/")
    with pytest.raises(InvalidRequest, match="no public address"):
        await Fetcher(1000, 20.0, GuardedHttp()).fetch("http://none.invalid/")


async def test_the_next_address_of_a_name_is_tried_when_one_is_dead(public: Server) -> None:
    resolve = names({"two.example": [f"127.0.0.3 {PUBLIC}"]})
    both = fetcher(resolve_host=resolve, allowed=lambda address: True)
    assert await both.fetch(f"http://two.example:{public.port}/file") == FILE


# ---------------------------------------------------------------- bounds


async def test_a_file_of_exactly_the_largest_size_is_accepted(public: Server) -> None:
    assert await fetcher(max_bytes=len(FILE)).fetch(public.url()) == FILE
    with pytest.raises(AudioTooLarge):
        await fetcher(max_bytes=len(FILE) - 1).fetch(public.url())


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_endless_file_is_rejected_at_the_bound(chunked: bool) -> None:
    block = bytes(65536)
    block = b"10000\r\n" + block + b"\r\n" if chunked else block
    hung_up = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        coding = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        writer.write(b"HTTP/1.1 200 OK\r\n" + coding + b"\r\n")
        try:
            while True:
                writer.write(block)
                await writer.drain()
        except OSError:
            hung_up.set()
        writer.close()

    async with await asyncio.start_server(pour, PUBLIC, 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(AudioTooLarge):
            await fetcher(max_bytes=10**6).fetch(f"http://{PUBLIC}:{port}/")
        await asyncio.wait_for(hung_up.wait(), 20)


async def test_no_more_is_read_than_what_is_declared(public: Server) -> None:
    public.answers["/file"] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdefgh"
    assert await fetcher().fetch(public.url()) == b"abc"


async def test_a_declared_length_above_the_bound_is_refused_unread(public: Server) -> None:
    public.answers["/slow"] = b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"
    with pytest.raises(AudioTooLarge):
        await fetcher().fetch(public.url("/slow"))


async def test_compressed_answers_are_not_unpacked(public: Server) -> None:
    public.answers["/file"] = reply(200, FILE, "Content-Encoding: gzip")
    assert await fetcher().fetch(public.url()) == FILE
    assert b"Accept-Encoding: identity" in public.asked[0]


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]
)
async def test_a_slow_server_ends_in_the_deadline(public: Server, head: bytes) -> None:
    public.answers["/slow"] = head
    with pytest.raises(FetchFailed, match=r"within 0\.2 seconds"):
        await fetcher(timeout_s=0.2).fetch(public.url("/slow"))


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, reply(200)[:-2]],
    ids=["nothing", "no http", "endless head", "half a head"],
)
async def test_a_response_that_is_not_http_is_an_error(public: Server, answer: bytes) -> None:
    public.answers["/file"] = answer
    with pytest.raises(FetchFailed, match="no valid response"):
        await fetcher().fetch(public.url())


async def test_a_server_that_does_not_listen_is_an_error(public: Server) -> None:
    async with listening(PUBLIC) as closed:
        url = closed.url()
    with pytest.raises(FetchFailed):
        await fetcher().fetch(url)


@pytest.mark.parametrize("status", [204, 206, 401, 404, 500])
async def test_any_other_answer_is_an_error(public: Server, status: int) -> None:
    public.answers["/file"] = reply(status, FILE if status != 204 else b"")
    with pytest.raises(FetchFailed, match=str(status)):
        await fetcher().fetch(public.url())


# ---------------------------------------------------------------- in the v1 API


async def post(app, **fields: str):
    async with client_of(app) as client:
        return await client.post("/v1/process", data={"request_json": '{"settings":{}}', **fields})


async def test_by_default_no_file_is_fetched(public: Server) -> None:
    service = FakeService()
    files = {"audio": ("a", b"x")}
    data = {"request_json": '{"settings":{}}', "file_url": public.url()}
    async with client_of(app_of(service)) as client:
        answer = await client.post("/v1/process", data=data, files=files)
    assert (answer.status_code, answer.json()["code"]) == (422, "not_enabled")
    alone = await post(app_of(service), file_url=public.url())
    assert alone.json()["detail"][0]["loc"] == ["body", "audio"]
    assert (public.asked, service.calls) == ([], [])


async def test_a_file_that_is_named_is_processed(public: Server) -> None:
    service = FakeService()
    app = app_of(service, fetcher=fetcher())
    answer = await post(app, file_url=public.url())
    assert answer.status_code == 200, answer.text
    assert [data for data, _ in service.calls] == [FILE]


async def test_a_service_that_fetches_refuses_private_addresses(public: Server) -> None:
    app = app_of(FakeService(), url_input=True)
    answer = await post(app, file_url=public.url())
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": "file_url: its host has no public address",
        "code": "invalid_request",
    }
    assert public.asked == []


async def test_a_file_is_sent_or_named_but_not_both_and_not_neither(public: Server) -> None:
    app = app_of(FakeService(), fetcher=fetcher())
    data = {"request_json": '{"settings":{}}', "file_url": public.url()}
    async with client_of(app) as client:
        answer = await client.post("/v1/process", data=data, files={"audio": ("a", b"x")})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    neither = await post(app)
    assert neither.json()["detail"] == [
        {"type": "missing", "loc": ["body", "audio"], "msg": "Field required"}
    ]
    long = await post(app, file_url=public.url("/" + "x" * MAX_URL_CHARS))
    assert long.status_code == 422
    assert public.asked == []


async def test_errors_of_fetching_have_their_status_and_code(public: Server) -> None:
    app = app_of(FakeService(), fetcher=fetcher(max_bytes=5))
    large = await post(app, file_url=public.url())
    assert (large.status_code, large.json()["code"]) == (413, "audio_too_large")
    missing = await post(app, file_url=public.url("/nothing"))
    assert (missing.status_code, missing.json()["code"]) == (STATUS["fetch_failed"], "fetch_failed")
    public.answers["/file"] = reply(200)
    empty = await post(app, file_url=public.url())
    assert (empty.status_code, empty.json()["code"]) == (400, "empty_audio")
    assert json.dumps(public.url()) not in large.text + missing.text + empty.text
