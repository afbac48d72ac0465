"""What travels on a lane, for both of its ends.

A lane is a WebSocket between an ingress and a recogniser replica. It carries the streams of that
ingress: a message is a msgpack list of calls one way, of answers the other way. Audio is float32,
so that a replay feeds exactly the samples of the first time. Per stream one call is under way at a
time:

- ``[stream, "open", model, hotwords]``, ``[stream, "feed", audio]`` and
  ``[stream, "finish", audio, trailing_silence_s]`` (which feeds first) are answered by
  ``[stream, words, None]`` or ``[stream, [], error]``;
- ``[stream, "close"]`` is not answered and may come at any time.

The client numbers the streams; a lane uses no number twice.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgpack
from websockets.asyncio.connection import Connection

from speech.errors import EngineFailed, Overloaded, SpeechError
from speech.transcript import Word

logger = logging.getLogger(f"speechgraph.{__name__}")

MAX_MESSAGE_BYTES = 16 * 1024**2
"""A longer message ends its lane."""

SOCKET_OPTIONS: dict[str, Any] = {
    "compression": None,
    "max_size": MAX_MESSAGE_BYTES,
    "close_timeout": 1.0,
    # A node that died without closing its sockets is found within 15 s; the time-out is long
    # because a model that loads beside the streams may hold the interpreter for seconds.
    "ping_interval": 5.0,
    "ping_timeout": 10.0,
}
"""Of both ends."""

_FULL_MESSAGE_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class LaneAddress:
    """Where a replica accepts lanes, and how many streams it has and can have."""

    replica: str
    host: str
    port: int
    token: str = field(repr=False)
    streams: int
    capacity: int


def bearer(token: str) -> str:
    """The Authorization header of a lane."""
    return f"Bearer {token}"


class Outbox:
    """Calls or answers to be sent: all that wait in one message, at most one message per tick.

    Bounded by the streams of the lane: each has at most one call, and its close, under way.
    """

    def __init__(self, tick_s: float = 0.0) -> None:
        self._tick_s = tick_s
        self._waiting: deque[list[Any]] = deque()
        self._posted = asyncio.Event()

    def post(self, item: list[Any]) -> None:
        """Send it with the next message."""
        self._waiting.append(item)
        self._posted.set()

    async def send_to(self, socket: Connection) -> None:
        """Send until cancelled; an item waits longer than a tick only while the socket is full."""
        while True:
            await self._posted.wait()
            self._posted.clear()
            while self._waiting:
                await socket.send(msgpack.packb(self._message()))
            await asyncio.sleep(self._tick_s)

    def _message(self) -> list[list[Any]]:
        items: list[list[Any]] = []
        size = 0
        while self._waiting and size < _FULL_MESSAGE_BYTES:
            item = self._waiting.popleft()
            items.append(item)
            size += sum(len(part) for part in item if isinstance(part, bytes))
        return items


async def until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run them together; when one ends, cancel the others. Raises what one raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def pack_words(words: tuple[Word, ...]) -> list[list[Any]]:
    """Words as an answer carries them."""
    return [[word.text, word.start, word.end, word.probability] for word in words]


def unpack_words(packed: list[list[Any]]) -> tuple[Word, ...]:
    """The words of an answer."""
    return tuple(Word(*word) for word in packed)


def pack_error(error: Exception) -> list[Any]:
    """An error as an answer carries it; one outside the domain's family becomes EngineFailed."""
    if not isinstance(error, SpeechError):
        logger.exception("a stream failed", exc_info=error)
        error = EngineFailed(f"the recogniser failed: {error}")
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
    return [error.code, error.message, retry_after_s]


def unpack_error(packed: list[Any]) -> SpeechError:
    """The error as the recogniser raised it."""
    code, message, retry_after_s = packed
    kind = _ERROR_CLASSES.get(code, EngineFailed)
    error: SpeechError = kind(message) if retry_after_s is None else kind(message, retry_after_s)
    return error


def _with_subclasses(kind: type[SpeechError]) -> list[type[SpeechError]]:
    return [kind, *(k for sub in kind.__subclasses__() for k in _with_subclasses(sub))]


_ERROR_CLASSES: dict[str, Any] = {kind.code: kind for kind in _with_subclasses(SpeechError)}
