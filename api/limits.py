"""Bounds of a request before any model sees it: bytes, form parts, requests at once, seconds."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speech.errors import AudioTooLarge, DeadlineExceeded, Overloaded

FORM_LIMITS = {"max_files": 16, "max_fields": 16, "max_part_size": 1024**2}
"""Most file parts, most text parts, and bytes of one text part of a form."""


class BodyLimit:
    """ASGI middleware that bounds the bytes of a request body while it is read.

    AudioTooLarge is raised where the app reads, so a body that nobody reads costs nothing, and a
    declared length above the bound is refused before the first byte is taken.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        taken = 0

        def check(size: int) -> None:
            if size > self.max_bytes:
                raise AudioTooLarge(f"The request body is larger than {self.max_bytes} bytes.")

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

    The slot is taken before the body is read; one request more is refused at once with Overloaded.
    A request that runs longer than ``timeout_s``, its upload included, ends in DeadlineExceeded.
    """
    running = 0

    class HeavyRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                nonlocal running
                if running >= max_concurrent:
                    raise Overloaded(f"{max_concurrent} requests are being processed already.")
                running += 1
                try:
                    async with asyncio.timeout(timeout_s) as deadline:
                        return await handle(request)
                except TimeoutError:
                    if not deadline.expired():
                        raise
                    message = f"The request did not finish within {timeout_s:g} seconds."
                    raise DeadlineExceeded(message) from None
                finally:
                    running -= 1

            return bounded

    return HeavyRoute
