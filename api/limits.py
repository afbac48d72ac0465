"""Bounds of a request before any model sees it: bytes, form parts, requests at once, seconds."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speech.errors import AudioTooLarge, DeadlineExceeded, Overloaded

LAST_WORDS_S = 5.0
"""What a streamed answer has left beyond the deadline to say so, and its client to read it."""
_DEADLINE = "speechgraph.deadline"

FORM_LIMITS = {"max_files": 16, "max_fields": 16, "max_part_size": 1024**2}
"""Most file parts, most text parts, and bytes of one text part of a form."""


class BodyLimit:
    """ASGI middleware that bounds the bytes of a request body while it is read.

    AudioTooLarge is raised where the app reads, so a body that nobody reads costs nothing, and a
    declared length above the bound is refused before the first byte is taken. ``max_bytes`` holds
    the bound of each path prefix, "" for all; the longest prefix wins.
    """

    def __init__(self, app: ASGIApp, max_bytes: Mapping[str, int]) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        most = self.max_bytes[max((p for p in self.max_bytes if path.startswith(p)), key=len)]
        declared = Headers(scope=scope).get("content-length", "")
        taken = 0

        def check(size: int) -> None:
            if size > most:
                raise AudioTooLarge(f"The request body is larger than {most} bytes.")

        async def bounded() -> Message:
            nonlocal taken
            check(int(declared) if declared.isdecimal() else 0)
            message = await receive()
            taken += len(message.get("body", b""))
            check(taken)
            return message

        await self.app(scope, bounded, send)


def heavy_route(max_concurrent: int, timeout_s: float) -> type[APIRoute]:
    """A class for routes that do long work: they share ``max_concurrent`` slots and a deadline.

    The slot is taken before the body is read and held until the answer is sent; one request more is
    refused at once with Overloaded. A request that runs longer than ``timeout_s``, its upload
    included, ends in DeadlineExceeded. A route that streams its answer works
    :func:`within_deadline` by itself.
    """
    running = 0

    class HeavyRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal running
            if running >= max_concurrent:
                raise Overloaded(f"{max_concurrent} requests are being processed already.")
            running += 1
            scope[_DEADLINE] = (asyncio.get_running_loop().time() + timeout_s, timeout_s)
            try:
                async with asyncio.timeout(timeout_s + LAST_WORDS_S):
                    await super().handle(scope, receive, send)
            finally:
                running -= 1

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                async with within_deadline(request):
                    return await handle(request)

            return bounded

    return HeavyRoute


@asynccontextmanager
async def within_deadline(request: Request) -> AsyncIterator[None]:
    """Cancel what is inside when the time of a heavy route is up; DeadlineExceeded is raised."""
    ends_at, timeout_s = request.scope[_DEADLINE]
    try:
        async with asyncio.timeout_at(ends_at) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        message = f"The request did not finish within {timeout_s:g} seconds."
        raise DeadlineExceeded(message) from None
