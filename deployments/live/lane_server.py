"""The replica's end of the lanes, and what travels on them.

A lane is a WebSocket between an ingress and a recogniser replica. It carries the streams of that
ingress: a message is a msgpack list of calls one way, of answers the other way. Audio is float32,
so that a replay hears exactly what was heard before. Per stream one call is under way at a time:

- ``[stream, "open", model, hotwords]``, ``[stream, "feed", audio]`` and
  ``[stream, "finish", audio, quiet_s]`` (which feeds first) are answered by
  ``[stream, words, None]`` or ``[stream, [], error]``;
- ``[stream, "close"]`` is not answered and may come at any time.

Numbers of streams are the client's; a lane uses none twice.
"""

import asyncio
import hmac
import logging
import secrets
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from speech.errors import EngineFailed, Overloaded, SpeechError
from speech.ports import RecognizerStream, StreamingRecognizer
from speech.transcript import Word

logger = logging.getLogger("ray.serve")

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
    """Where a replica takes lanes, and how many streams it has and can have."""

    replica: str
    host: str
    port: int
    token: str = field(repr=False)
    streams: int
    capacity: int


class Outbox:
    """Calls or answers to be sent: all that wait in one message, at most one message per tick."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self._tick_s = tick_s
        self._waiting: deque[list[Any]] = deque()
        self._posted = asyncio.Event()

    def post(self, item: list[Any]) -> None:
        """Send it with the next message."""
        self._waiting.append(item)
        self._posted.set()

    async def send_to(self, socket: Connection) -> None:
        """Send until cancelled; what waits longer than a tick is what the socket does not take."""
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


class LaneServer:
    """Takes lanes of ingresses that know the token, and hosts their streams on one recogniser."""

    def __init__(self, recognizer: StreamingRecognizer, host: str) -> None:
        self.token = secrets.token_urlsafe(32)
        self.host = host
        self._recognizer = recognizer
        self._server: Server | None = None
        self._hosts: set[_Host] = set()

    async def start(self) -> None:
        """Listen on a free port of ``host``, once."""
        if self._server is None:
            self._server = await serve(
                self._accept, self.host, 0, process_request=self._refuse, **SOCKET_OPTIONS
            )

    async def close(self) -> None:
        """End every lane and free its streams."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def streams(self) -> int:
        """Streams of all lanes together."""
        return sum(host.streams for host in self._hosts)

    def _refuse(self, socket: ServerConnection, request: Request) -> Response | None:
        given = request.headers.get("Authorization", "")
        if hmac.compare_digest(given.encode(), bearer(self.token).encode()):
            return None
        return socket.respond(401, "this lane needs its token\n")

    async def _accept(self, socket: ServerConnection) -> None:
        host = _Host(self._recognizer, socket)
        self._hosts.add(host)
        try:
            await host.run()
        finally:
            self._hosts.discard(host)


def bearer(token: str) -> str:
    """The Authorization header of a lane."""
    return f"Bearer {token}"


_Call = tuple[bytes, float | None]
"""Audio, and how long nobody spoke if the utterance ends with it."""


class _Host:
    """The streams of one lane, each in a task of its own that lives as long as the stream."""

    def __init__(self, recognizer: StreamingRecognizer, socket: ServerConnection) -> None:
        self._recognizer = recognizer
        self._socket = socket
        self._streams: dict[int, tuple[asyncio.Task[None], asyncio.Queue[_Call]]] = {}
        self._outbox = Outbox()

    @property
    def streams(self) -> int:
        return len(self._streams)

    async def run(self) -> None:
        """Until the client is gone; then nothing of it is left."""
        try:
            await until_one_ends(self._read(), self._outbox.send_to(self._socket))
        except ConnectionClosed as error:
            logger.info("a lane ended: %s", error)
        finally:
            tasks = [task for task, _ in self._streams.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._socket:
            for call in msgpack.unpackb(message):
                self._take(call)

    def _take(self, call: list[Any]) -> None:
        match call:
            case [int(stream), "open", str(model), str() | None as hotwords]:
                calls: asyncio.Queue[_Call] = asyncio.Queue(1)
                task = asyncio.create_task(self._live(stream, model, hotwords, calls))
                self._streams[stream] = task, calls
                task.add_done_callback(lambda _: self._streams.pop(stream, None))
            case [int(stream), "feed", bytes(audio)]:
                self._streams[stream][1].put_nowait((audio, None))
            case [int(stream), "finish", bytes(audio), float(quiet_s)]:
                self._streams[stream][1].put_nowait((audio, quiet_s))
            case [int(stream), "close"]:
                if stream in self._streams:
                    self._streams[stream][0].cancel()
            case _:
                raise ValueError("this is no call of a lane")

    async def _live(
        self,
        number: int,
        model: str,
        hotwords: str | None,
        calls: asyncio.Queue[_Call],
    ) -> None:
        try:
            stream = await self._recognizer.open(model, hotwords)
        except Exception as error:
            self._outbox.post([number, [], _packed_error(error)])
            return
        try:
            self._outbox.post([number, [], None])
            while True:
                call = await calls.get()
                try:
                    words = await _words(stream, *call)
                    self._outbox.post([number, [_packed_word(word) for word in words], None])
                except Exception as error:
                    self._outbox.post([number, [], _packed_error(error)])
        finally:
            await stream.close()


async def _words(
    stream: RecognizerStream, audio: bytes, finish_after_s: float | None
) -> tuple[Word, ...]:
    samples = np.frombuffer(audio, np.float32)
    if finish_after_s is None:
        return await stream.feed(samples)
    if len(samples):
        await stream.feed(samples)
    return await stream.finish(finish_after_s)


def _packed_word(word: Word) -> list[Any]:
    return [word.text, word.start, word.end, word.probability]


def unpack_words(packed: list[list[Any]]) -> tuple[Word, ...]:
    """The words of an answer."""
    return tuple(Word(*word) for word in packed)


def _packed_error(error: Exception) -> list[Any]:
    if not isinstance(error, SpeechError):
        logger.exception("a stream failed", exc_info=error)
        error = EngineFailed(f"the recogniser failed: {error}")
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
    return [error.code, error.message, retry_after_s]


def unpack_error(packed: list[Any]) -> SpeechError:
    """The error as the recogniser raised it."""
    code, message, retry_after_s = packed
    kind = _KINDS.get(code, EngineFailed)
    error: SpeechError = kind(message) if retry_after_s is None else kind(message, retry_after_s)
    return error


def _with_subclasses(kind: type[SpeechError]) -> list[type[SpeechError]]:
    return [kind, *(k for sub in kind.__subclasses__() for k in _with_subclasses(sub))]


_KINDS: dict[str, Any] = {kind.code: kind for kind in _with_subclasses(SpeechError)}
