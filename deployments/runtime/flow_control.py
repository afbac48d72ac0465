"""Flow control for live sockets, where Serve allows it.

Ray Serve 2.60 receives every frame of a socket from uvicorn at once and queues it without a bound.
With direct ingress (HAProxy) that happens in the replica itself, so it can be delayed here: uvicorn
then stops reading, and TCP slows the client down. Serve's own proxy queues in another process, out
of reach; there the bounds of the session reject a client that is too far ahead.
"""

import asyncio

from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.live.websocket import FLOW_CONTROL

MAX_QUEUED_FRAMES = 16
POLL_S = 0.005


class FlowControl:
    """ASGI middleware, the outermost: bounds what Serve queues of a socket.

    Where it does, the scope has the extension FLOW_CONTROL.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and isinstance(receive, ASGIDIReceiveProxy):
            receive._receive = _BoundedReceive(receive)
            scope["extensions"] = {**scope.get("extensions", {}), FLOW_CONTROL: {}}
        await self._app(scope, receive, send)


class _BoundedReceive:
    """Uvicorn's ``receive`` as Serve calls it in a loop: waits while enough is queued."""

    def __init__(self, proxy: ASGIDIReceiveProxy) -> None:
        self._proxy = proxy
        self._receive = proxy._receive

    async def __call__(self) -> Message:
        # Serve calls this in another thread and loop than those of the queue's consumer.
        while self._proxy.queue.qsize() > MAX_QUEUED_FRAMES:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return await self._receive()
