"""The HTTP client for URLs that clients name: it connects to checked addresses only.

Whoever may name a URL could make this service call whatever it can reach. A host name is therefore
resolved once per request, every address of it has to be allowed, and the connection goes to one of
those: a later answer of the name server has no effect. TLS still verifies the name. Redirects are
left to the caller; proxies, credentials and cookies of the environment are not used.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import httpcore
import httpx

from speech.errors import InvalidRequest

MAX_URL_CHARS = 2048
CONNECT_TIMEOUT_S = 3.0
"""For each address, so that a deadline of ten seconds covers more than one that is dead."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

# Besides what Python 3.11 knows not to be global: protocol assignments, the metadata server of
# Azure, and the ways to write an IPv4 address as an IPv6 one (NAT64, Teredo, 6to4).
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",
        "168.63.129.16/32",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
    )
]


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet: not private, local, metadata or multicast."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def any_address(address: Address) -> bool:
    """Allows every address, where the operator chose to."""
    return True


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, none if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(socket_address[0]) for *_, socket_address in found]


def parse_url(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """An http or https URL, which may be relative to ``base``. Raises InvalidRequest."""
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
    except (httpx.InvalidURL, ValueError):
        raise InvalidRequest("it is no URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidRequest("only http and https are allowed")
    if not 0 < (parsed.port or 80) < 2**16:
        raise InvalidRequest("there is no such port")
    if parsed.userinfo:
        raise InvalidRequest("a URL with a user name or a password is not allowed")
    return parsed


class GuardedHttp:
    """Sends requests to hosts all of whose addresses are ``allowed``, by ``resolve_host``."""

    def __init__(
        self, allowed: Callable[[Address], bool] = is_public, resolve_host: Resolve = resolve
    ) -> None:
        self._allowed = allowed
        self._network = _CheckedNetwork(allowed, resolve_host)
        self._tls = httpcore.default_ssl_context()

    def check(self, url: str) -> None:
        """Raise InvalidRequest for a URL that no request would be sent to.

        Names are resolved by the request; here only an address that is written out is checked.
        """
        if len(url) > MAX_URL_CHARS:
            raise InvalidRequest(f"it has more than {MAX_URL_CHARS} characters")
        address = _written_address(parse_url(url).raw_host.decode("ascii"))
        if address is not None and not self._allowed(address):
            raise InvalidRequest(_REJECTED)

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: httpx.URL,
        headers: Iterable[tuple[str, str]] = (),
        content: bytes | None = None,
    ) -> AsyncIterator[httpcore.Response]:
        """Send a request on a connection of its own; read the body of the response inside.

        There is no deadline but that for connecting. Raises InvalidRequest for a host that is not
        allowed, ConnectionError where none of its addresses gives a valid HTTP response.
        """
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        sent = [("Host", url.netloc.decode("ascii")), ("User-Agent", "speechgraph"), *headers]
        if content is not None:
            sent.append(("Content-Length", str(len(content))))
        pool = httpcore.AsyncConnectionPool(self._tls, network_backend=self._network)
        try:
            async with (
                pool,
                pool.stream(method, target, headers=sent, content=content) as response,
            ):
                yield response
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise ConnectionError(repr(error)) from error


_REJECTED = "its host has no public address"


def _written_address(host: str) -> Address | None:
    """The address that a host stands for without a name server, in each notation of resolvers.

    Those of IPv4 have one to four parts, decimal, octal or hexadecimal: 2130706433, 0x7f.1, 127.1.
    """
    host = host.removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return ipaddress.IPv4Address("127.0.0.1")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    with contextlib.suppress(OSError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to the first address of a host that accepts, once all of them are allowed."""

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
            raise InvalidRequest(_REJECTED)
        *others, last = addresses
        for address in others:
            try:
                return await self._inner.connect_tcp(str(address), port, CONNECT_TIMEOUT_S)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(str(last), port, CONNECT_TIMEOUT_S)
