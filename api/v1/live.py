"""``WS /v1/ws``: the v1 stream, and the native stream for clients that ask for it.

The first frame decides: ``{"type": "start", …}`` opens a native stream, anything else is taken for
a v1 ``ProcessRequest``.
"""

import json
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.websockets import WebSocket

from api.auth.middleware import caller_of, max_concurrent_of
from api.live.connection import Frame
from api.live.conversation import Opening
from api.live.registry import LiveStreams
from api.live.websocket import serve
from api.v1.native_stream import NativeStream
from api.v1.v1_stream import V1Stream
from speech.errors import SpeechError
from speech.live.events import Event
from speech.live.session import LiveSession


class EitherStream:
    """One socket of ``/v1/ws``, see :class:`api.live.conversation.Dialect`.

    It becomes a stream of one of the two kinds with its first frame.
    """

    may_start_late = False

    def __init__(self, live: LiveStreams, owner: str, max_of_owner: int | None) -> None:
        self._live = live
        self._owner = owner
        self._max_of_owner = max_of_owner
        self._stream: NativeStream | V1Stream = V1Stream(live)

    @property
    def resumable(self) -> bool:
        return self._stream.resumable

    @property
    def ended(self) -> bool:
        return self._stream.ended

    def greeting(self) -> Sequence[str]:
        return ()

    def open(self, frame: Frame) -> Opening:
        if isinstance(frame, str) and _is_start(frame):
            self._stream = NativeStream(self._live, self._owner, self._max_of_owner)
        return self._stream.open(frame)

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        return self._stream.receive(frame, session)

    def render(self, event: Event) -> Sequence[str]:
        return self._stream.render(event)

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        return self._stream.render_error(error, begun)

    def close_code(self, code: str) -> int:
        return self._stream.close_code(code)


def router(live: LiveStreams) -> APIRouter:
    """The route of both streams."""
    routes = APIRouter()

    @routes.websocket("/v1/ws")
    async def either(websocket: WebSocket) -> None:
        stream = EitherStream(live, caller_of(websocket), max_concurrent_of(websocket))
        await serve(websocket, live, stream)

    return routes


def _is_start(frame: str) -> bool:
    try:
        return bool(json.loads(frame)["type"] == "start")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
