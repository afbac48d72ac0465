"""Flow control of sockets: what uvicorn received waits in bounded number, with direct ingress."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.types import Message, Receive, Scope, Send

from api.live.websocket import FLOW_CONTROL
from deployments.runtime.flow_control import MAX_QUEUED_FRAMES, FlowControl

FRAME = {"type": "websocket.receive", "bytes": b"audio"}
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Uvicorn:
    """Has any number of frames ready; counts those that were received."""

    def __init__(self) -> None:
        self.received = 0

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        self.received += 1
        return FRAME


async def send(message: Message) -> None:
    raise AssertionError("nothing is sent here")


async def served(app: App, scope: Scope, receive: Any) -> None:
    await FlowControl(app)(scope, receive, send)


def proxy(uvicorn: Uvicorn) -> ASGIDIReceiveProxy:
    loop = asyncio.get_running_loop()
    return ASGIDIReceiveProxy({"type": "websocket"}, uvicorn.receive, loop)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_frames_wait_in_the_socket_while_enough_are_queued() -> None:
    uvicorn = Uvicorn()
    receive = proxy(uvicorn)
    read = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read.wait()
        for _ in range(5):
            assert await receive() == FRAME
        await eventually(lambda: uvicorn.received == MAX_QUEUED_FRAMES + 6)

    serving = asyncio.create_task(served(app, {"type": "websocket"}, receive))
    await asyncio.sleep(0)
    fetching = receive.fetch_until_disconnect_task()
    await eventually(lambda: receive.queue.qsize() > MAX_QUEUED_FRAMES)
    for _ in range(100):
        await asyncio.sleep(0)
    assert uvicorn.received == MAX_QUEUED_FRAMES + 1
    read.set()
    await serving
    fetching.cancel()


async def test_the_app_is_informed_of_flow_control_only_where_there_is_any() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    async def other_receive() -> Message:
        return FRAME

    await served(app, {"type": "websocket", "extensions": {"x": {}}}, proxy(Uvicorn()))
    assert scopes[-1]["extensions"] == {"x": {}, FLOW_CONTROL: {}}
    await served(app, {"type": "websocket"}, other_receive)
    assert "extensions" not in scopes[-1]


@pytest.mark.parametrize("kind", ["http", "lifespan"])
async def test_what_is_no_socket_passes_untouched(kind: str) -> None:
    receive = proxy(Uvicorn())

    async def app(scope: Scope, receive_here: Receive, send: Send) -> None:
        assert receive_here is receive
        assert "extensions" not in scope

    before = receive._receive
    await served(app, {"type": kind}, receive)
    assert receive._receive == before
