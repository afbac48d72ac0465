"""Flow control for live sockets, where Serve leaves room for it.

Ray Serve 2.60 takes every frame of a socket off uvicorn as it comes and queues it without a bound.
With direct ingress (HAProxy) that happens in the replica itself, so it can be held up: uvicorn then
stops reading, and TCP slows the client down. Serve's own proxy queues in another process, out of
reach; there the bounds of the session refuse a client that is too far ahead.
"""

import asyncio

from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.live.websocket import FLOW_CONTROL

MAX_QUEUED_FRAMES = 16
POLL_S = 0.005


class FlowControl:
    """ASGI middleware, the outermost: bounds what Serve queues of a socket, and says so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and isinstance(receive, ASGIDIReceiveProxy):
            receive._receive = _HeldUp(receive)
            scope["extensions"] = {**scope.get("extensions", {}), FLOW_CONTROL: {}}
        await self._app(scope, receive, send)


class _HeldUp:
    """Uvicorn's ``receive`` as Serve calls it, again and again: waits while enough is queued."""

    def __init__(self, proxy: ASGIDIReceiveProxy) -> None:
        self._proxy = proxy
        self._receive = proxy._receive

    async def __call__(self) -> Message:
        # Serve calls this from another thread and loop than the one that takes from the queue.
        while self._proxy.queue.qsize() > MAX_QUEUED_FRAMES:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return await self._receive()
