"""Calls to URLs that clients name: to the public internet only, unless the operator says else."""

import asyncio
import ipaddress
import socket

import httpx

from speech.errors import InvalidRequest

MAX_URL_CHARS = 2048


def check_url(url: str, *, allow_private: bool) -> None:
    """Raise InvalidRequest for a URL that would never be called.

    Names are looked up when the call is made, see :class:`PublicOnly`; here only an address that is
    written out can be refused.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"The URL cannot be read: {error}") from None
    if len(url) > MAX_URL_CHARS or parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidRequest(f"A URL has to be http or https, at most {MAX_URL_CHARS} characters.")
    if parsed.userinfo:
        raise InvalidRequest("A URL must not hold a user name or password.")
    try:
        address = ipaddress.ip_address(parsed.host)
    except ValueError:
        return
    if not allow_private and not is_public(address):
        raise InvalidRequest(f"The address {address} is not public.")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address belongs to the internet, also where it wraps one of IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.teredo is not None or address in _NAT64:
            return False
        wrapped = address.ipv4_mapped or address.sixtofour
        if wrapped is not None:
            return is_public(wrapped)
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PublicOnly(httpx.AsyncHTTPTransport):
    """Connects to the address that was checked, so a name cannot change its mind in between.

    Raises httpx.ConnectError for a name that does not resolve or has an address that is not public.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Look the host up, check, and go there; TLS still asks for the name."""
        host = request.url.raw_host.decode("ascii")
        found = await _lookup(host, request.url.port or 0)
        if not all(map(is_public, found)):
            raise httpx.ConnectError(f"{host} is not a public address")
        request.extensions = {**request.extensions, "sni_hostname": host}
        request.url = request.url.copy_with(host=str(found[0]))
        return await super().handle_async_request(request)


async def _lookup(host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpx.ConnectError(f"{host} cannot be looked up: {error}") from None
    return [ipaddress.ip_address(entry[4][0]) for entry in found]
