"""Fetches a file that a client names by its URL instead of sending it."""

import asyncio

import httpcore
import httpx

from infra.guarded_http import GuardedHttp, parse_url
from speech.errors import AudioTooLarge, FetchFailed

MAX_REDIRECTS = 3

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = (("Accept", "*/*"), ("Accept-Encoding", "identity"))


class Fetcher:
    """Fetches files of at most ``max_bytes`` within ``timeout_s`` seconds, redirects included.

    Every redirect is a request of its own under the rules of ``http``.
    """

    def __init__(self, max_bytes: int, timeout_s: float, http: GuardedHttp) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._http = http

    async def fetch(self, url: str) -> bytes:
        """The file at an http or https URL.

        Raises InvalidRequest for a URL that is not allowed, FetchFailed, AudioTooLarge. Their
        messages reveal nothing of the network of this service.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(parse_url(url))
        except TimeoutError:
            seconds = f"{self._timeout_s:g} seconds"
            raise FetchFailed(f"the file did not arrive within {seconds}") from None
        except ConnectionError:
            raise FetchFailed("its server gave no valid response") from None

    async def _follow(self, url: httpx.URL) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            async with self._http.request("GET", url, _HEADERS) as response:
                if response.status == 200:
                    return await self._body(response)
                location = _header(response, b"location")
                if response.status not in _REDIRECTS or not location:
                    raise FetchFailed(f"its server answered {response.status}")
                url = parse_url(location.decode("latin-1"), url)
        raise FetchFailed(f"more than {MAX_REDIRECTS} redirects")

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
            raise AudioTooLarge(f"the file is larger than {self._max_bytes} bytes")


def _header(response: httpcore.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"")
