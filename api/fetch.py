"""A file that a client names by its address instead of sending it: fetched from public hosts only.

Whoever may name an address could make this service ask whatever it can reach. So the name of a host
is resolved once, each of its addresses has to be public, and the connection goes to one of those
that were checked: a second answer of the name server counts for nothing. Every redirect is a new
request under the same rules. Proxies, credentials and cookies of the environment are not used.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

import httpcore
import httpx

from infra.addresses import Address, is_public, resolve
from speech.errors import AudioTooLarge, FetchFailed, InvalidRequest

MAX_REDIRECTS = 3
CONNECT_TIMEOUT_S = 10.0

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [("User-Agent", "speechgraph"), ("Accept", "*/*"), ("Accept-Encoding", "identity")]


class Fetcher:
    """Fetches files of at most ``max_bytes`` within ``timeout_s`` seconds, redirects included.

    ``allowed`` says which addresses may be connected to, ``resolve_host`` where a host is.
    """

    def __init__(
        self,
        max_bytes: int,
        timeout_s: float,
        allowed: Callable[[Address], bool] = is_public,
        resolve_host: Resolve = resolve,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._network = _Checked(allowed, resolve_host)
        self._tls = httpcore.default_ssl_context()

    async def fetch(self, url: str) -> bytes:
        """The file at an http or https address.

        Raises InvalidRequest for an address that is not followed, FetchFailed, AudioTooLarge. What
        they say tells nothing of the network on this side.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url)
        except TimeoutError:
            seconds = f"{self._timeout_s:g} seconds"
            raise FetchFailed(f"file_url: the file did not arrive within {seconds}") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            raise FetchFailed("file_url: its server cannot be talked to") from None

    async def _follow(self, url: str) -> bytes:
        at = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            pool = httpcore.AsyncConnectionPool(self._tls, network_backend=self._network)
            target, headers = _request(at)
            async with pool, pool.stream("GET", target, headers=headers) as response:
                if response.status == 200:
                    return await self._body(response)
                location = _header(response, b"location")
                if response.status not in _REDIRECTS or not location:
                    raise FetchFailed(f"file_url: its server answered {response.status}")
                at = _parsed(location.decode("latin-1"), at)
        raise FetchFailed(f"file_url: more than {MAX_REDIRECTS} redirects")

    async def _body(self, response: httpcore.Response) -> bytes:
        body = bytearray()
        declared = _header(response, b"content-length")
        self._check(int(declared) if declared.isdigit() else 0)
        async for chunk in response.aiter_stream():
            self._check(len(body) + len(chunk))
            body += chunk
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise AudioTooLarge(f"file_url: the file is larger than {self._max_bytes} bytes")


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were looked up here and are allowed, and to no other."""

    def __init__(self, allowed: Callable[[Address], bool], resolve_host: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve_host
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (the base class has it)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(self._allowed, addresses)):
            raise InvalidRequest("file_url: its host has no public address")
        *others, last = addresses
        for address in others:
            try:
                return await self._inner.connect_tcp(str(address), port, CONNECT_TIMEOUT_S)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(str(last), port, CONNECT_TIMEOUT_S)


def _parsed(url: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
    except (httpx.InvalidURL, ValueError):
        raise InvalidRequest("file_url: it is no URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidRequest("file_url: only http and https are followed")
    if not 0 < (parsed.port or 80) < 2**16:
        raise InvalidRequest("file_url: there is no such port")
    if parsed.userinfo:
        raise InvalidRequest("file_url: a URL with a user name or a password is not followed")
    return parsed


def _request(url: httpx.URL) -> tuple[httpcore.URL, list[tuple[str, str]]]:
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    return target, [("Host", url.netloc.decode("ascii")), *_HEADERS]


def _header(response: httpcore.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"")
