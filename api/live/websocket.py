"""A WebSocket of Starlette as the connection of a conversation."""

import contextlib

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api.errors import RenderError, problem_of, render_detail
from api.live.connection import BROKEN, Disconnected, Frame
from api.live.conversation import Dialect, converse
from api.live.registry import LiveStreams
from speech.errors import Overloaded

FLOW_CONTROL = "speechgraph.flow_control"
"""Extension of the ASGI scope where frames that are not received slow the client down."""
PARAMETERS = "openai-"
"""What the sub-protocols begin with by which OpenAI's clients in browsers send key and version."""
MAX_REASON_BYTES = 123
"""Of a close frame, RFC 6455."""


class SocketPaths:
    """ASGI middleware that ignores a slash at the end of the path of a socket.

    Requests are redirected there; no client follows that in a handshake.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").rstrip("/")
        if scope["type"] == "websocket" and path != scope.get("root_path", ""):
            scope["path"] = path  # in place: the server logs this scope without the key
        await self.app(scope, receive, send)


class WebSocketConnection:
    """See :class:`api.live.connection.Connection`; the handshake is done."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    @property
    def flow_control(self) -> bool:
        return FLOW_CONTROL in self._websocket.scope.get("extensions", {})

    async def receive(self) -> Frame:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise Disconnected(message.get("code", BROKEN))
        data = message.get("bytes")
        return message.get("text") or "" if data is None else data

    async def send(self, text: str) -> None:
        try:
            await self._websocket.send_text(text)
        except WebSocketDisconnect:
            raise Disconnected from None

    async def close(self, code: int, reason: str) -> None:
        if self._websocket.application_state is WebSocketState.CONNECTED:
            short = reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
            with contextlib.suppress(WebSocketDisconnect):
                await self._websocket.close(code, short)


async def serve(
    websocket: WebSocket,
    live: LiveStreams,
    dialect: Dialect,
    *,
    render_error: RenderError = render_detail,
) -> None:
    """Serve one socket from the handshake to its close.

    Of the sub-protocols that the client offers the first is selected that carries no parameter:
    browsers fail a handshake in which none is.

    At the bound of sessions the handshake itself is answered: 503 with Retry-After, rendered by
    ``render_error``.
    """
    with contextlib.ExitStack() as places:
        try:
            places.enter_context(live.sessions.socket())
        except Overloaded as full:
            await websocket.send_denial_response(render_error(problem_of(full)))
            return
        with contextlib.suppress(WebSocketDisconnect):  # the client has left during the handshake
            offered = websocket.scope.get("subprotocols", ())
            selected = next((name for name in offered if not name.startswith(PARAMETERS)), None)
            await websocket.accept(selected)
            await converse(WebSocketConnection(websocket), live, dialect)
