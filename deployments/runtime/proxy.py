"""What Serve's proxy gets in addition, on each node: limits of sockets, errors in our shapes."""

import asyncio

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import DEFAULT_RETRY_AFTER_S, ErrorShapes, Problem, retry_after
from api.request_id import RequestId
from deployments.runtime.socket_limits import limit_sockets

REPLICA_FAILED = "the replica that had this request failed before it answered"
NO_REPLICA = "no replica of the service takes requests now"
SERVES_OWN = "/-/"
"""Prefix of the routes that Serve's proxy answers itself."""


def set_up_proxy() -> list[Middleware]:
    """Limit the sockets of a proxy of Serve; its middleware.

    Serve calls this function, named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, in each proxy
    before its server starts.
    """
    limit_sockets()
    return [Middleware(ProxyErrors)]


class ProxyErrors:
    """ASGI middleware that renders errors of the proxy itself in the shape of their path.

    Serve 2.60 sends nothing if the replica of a request dies, so that the web server answers with
    a bare 500, and 503 in plain text if there is no replica. Both become 503 with Retry-After.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] not in ("http", "websocket") or route.startswith(SERVES_OWN):
            await self._app(scope, receive, send)
            return
        answered = refused = client_left = False

        async def watched_receive() -> Message:
            nonlocal client_left
            message = await receive()
            client_left = client_left or message["type"].endswith(".disconnect")
            return message

        async def watched_send(message: Message) -> None:
            nonlocal answered, refused
            refused = refused or (not answered and _is_of_serve(message))
            if not refused:
                answered = True
                await send(message)

        await self._app(scope, watched_receive, watched_send)
        if not answered and not client_left:
            detail = NO_REPLICA if refused else REPLICA_FAILED
            headers = retry_after(DEFAULT_RETRY_AFTER_S)
            problem = Problem(503, "service_unavailable", detail, headers)
            shapes = await asyncio.to_thread(_shapes)
            # Serve's own middleware has put the id into the scope.
            await RequestId(shapes.render(scope, problem))(scope, receive, send)


def _is_of_serve(message: Message) -> bool:
    """Whether an answer of 503 begins that the proxy made; those of an app have a length."""
    return (
        message["type"] == "http.response.start"
        and message["status"] == 503
        and "content-length" not in Headers(raw=message["headers"])
    )


def _shapes() -> ErrorShapes:
    """Imported late: the dialects take a second and 30 MB, which few proxies need."""
    from api.app import SHAPES

    return SHAPES
