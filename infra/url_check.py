"""Calls to URLs that clients name: to the public internet only, unless the operator says else."""

import ipaddress

import httpx

from infra.addresses import MAX_URL_CHARS, is_public, resolve
from speech.errors import InvalidRequest


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


class PublicOnly(httpx.AsyncHTTPTransport):
    """Connects to the address that was checked, so a name cannot change its mind in between.

    Raises httpx.ConnectError for a name that does not resolve or has an address that is not public.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Look the host up, check, and go there; TLS still asks for the name."""
        host = request.url.raw_host.decode("ascii")
        found = await resolve(host, request.url.port or 0)
        if not found:
            raise httpx.ConnectError(f"{host} cannot be looked up")
        if not all(map(is_public, found)):
            raise httpx.ConnectError(f"{host} is not a public address")
        request.extensions = {**request.extensions, "sni_hostname": host}
        request.url = request.url.copy_with(host=str(found[0]))
        return await super().handle_async_request(request)
