"""One id per request: taken from ``X-Request-ID`` or made, on every answer and log line."""

import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
SANE = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
"""Ids that may enter a log line and a header; any other is replaced."""

NO_REQUEST = "-"

request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)
"""Id of the request that the current task works for."""


class RequestId:
    """ASGI middleware that sets :data:`request_id` and echoes it.

    ``server_echoes``: the server in front adds the header of the request to the answer by itself,
    as Ray Serve's does; a second copy would turn it into a list.
    """

    def __init__(self, app: ASGIApp, server_echoes: bool = False) -> None:
        self.app = app
        self.server_echoes = server_echoes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        taken = SANE.fullmatch(given) is not None
        current = given if taken else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and not (taken and self.server_echoes):
                MutableHeaders(scope=message)[HEADER] = current
            await send(message)

        token = request_id.set(current)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            request_id.reset(token)
