"""The replica's end of the lanes; see :mod:`deployments.live.lane_protocol`."""

import asyncio
import hmac
import logging
import secrets
from functools import partial
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from deployments.live.lane_protocol import (
    SOCKET_OPTIONS,
    Outbox,
    bearer,
    pack_error,
    pack_words,
    until_one_ends,
)
from speech.background import in_background
from speech.ports import RecognizerStream, StreamingRecognizer
from speech.transcript import Word

logger = logging.getLogger(f"speechgraph.{__name__}")

_Call = tuple[bytes, float | None]
"""Audio, and how long nobody spoke if the utterance ends with it."""


class LaneServer:
    """Accepts lanes of ingresses that have the token; their streams run on one recogniser."""

    def __init__(self, recognizer: StreamingRecognizer, host: str) -> None:
        self.token = secrets.token_urlsafe(32)
        self.host = host
        self._recognizer = recognizer
        self._server: Server | None = None
        self._lanes: set[_LaneStreams] = set()

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
        """The port that it listens on, once started."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def streams(self) -> int:
        """The number of streams of all lanes together."""
        return sum(lane.streams for lane in self._lanes)

    def _refuse(self, socket: ServerConnection, request: Request) -> Response | None:
        given = request.headers.get("Authorization", "")
        if hmac.compare_digest(given.encode(), bearer(self.token).encode()):
            return None
        return socket.respond(401, "this lane needs its token\n")

    async def _accept(self, socket: ServerConnection) -> None:
        lane = _LaneStreams(self._recognizer, socket)
        self._lanes.add(lane)
        try:
            await lane.run()
        finally:
            self._lanes.discard(lane)


class _LaneStreams:
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
        """Until the lane ends; then all of its streams are closed."""
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
                self._dispatch(call)

    def _dispatch(self, call: list[Any]) -> None:
        match call:
            case [int(stream), "open", str(model), str() | None as hotwords]:
                calls: asyncio.Queue[_Call] = asyncio.Queue(1)
                run = partial(self._run_stream, stream, model, hotwords, calls)
                task = in_background(run, f"stream {stream} of a lane", restart=False)
                self._streams[stream] = task, calls
                task.add_done_callback(lambda _: self._streams.pop(stream, None))
            case [int(stream), "feed", bytes(audio)]:
                self._streams[stream][1].put_nowait((audio, None))
            case [int(stream), "finish", bytes(audio), float(trailing_silence_s)]:
                self._streams[stream][1].put_nowait((audio, trailing_silence_s))
            case [int(stream), "close"]:
                if stream in self._streams:
                    self._streams[stream][0].cancel()
            case _:
                raise ValueError("not a call of a lane")

    async def _run_stream(
        self,
        number: int,
        model: str,
        hotwords: str | None,
        calls: asyncio.Queue[_Call],
    ) -> None:
        try:
            stream = await self._recognizer.open(model, hotwords)
        except Exception as error:
            self._outbox.post([number, [], pack_error(error)])
            return
        try:
            self._outbox.post([number, [], None])
            while True:
                call = await calls.get()
                try:
                    words = await _words(stream, *call)
                    self._outbox.post([number, pack_words(words), None])
                except Exception as error:
                    self._outbox.post([number, [], pack_error(error)])
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
