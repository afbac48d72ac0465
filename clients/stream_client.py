"""Live speech recognition over a WebSocket: an asyncio client that survives a dropped connection.

    async with StreamClient("ws://127.0.0.1:8000/v1/ws", language="en") as stream:
        await stream.send(pcm)  # as it comes from the microphone
        await stream.finish()
        async for event in stream:
            print(event["type"], event.get("text"))

This file and ``failover.py`` need the package ``websockets`` and nothing else of this repository.
"""

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from clients.failover import (
    FIRST_DELAY_S,
    Addresses,
    ConnectionLost,
    ServerBusy,
    StreamError,
    closed_error,
    open_socket,
)

Event = dict[str, Any]  # as the server sends it: {"type": "final", "seq": 7, "text": …}

URL = "ws://127.0.0.1:8000/v1/ws"
MESSAGE_S, KEEPALIVE_S = 0.1, 5.0  # audio in one message; time without until ``keepalive``
READY_S, CLOSE_S = 120.0, 5.0  # for the server to load its models; to close after ``done``
MAX_UNREAD_EVENTS = 10_000
MAX_STALLED_DROPS = 8  # in a row without new audio processed in between


class StreamClient:
    """One stream of mono PCM to the server and of events back; an async context manager.

    Iterate over it, best in a task of its own, for the events ``speech_start``, ``partial``,
    ``final``, ``speech_end``, ``error`` and ``done``, with times in seconds of the stream. Of
    unread partials in a row only the latest is kept. The iteration ends with ``done``.

    The client tries for ``retry_s`` seconds to connect, and to resume after a drop, not before the
    time a busy server asks for. ``url`` may be a list of addresses of one service: the client takes
    the next where one cannot be reached, is busy, or has dropped the connection. At the start each
    is tried once, even if that takes longer.

    Every final is received once, and speakers keep their labels. For that the audio since the last
    final is kept, at most ``buffer_s`` seconds, which should exceed the longest utterance. The same
    bounds audio that is not sent yet; then ``send`` waits.

    Entering the context, ``send`` and the iteration raise :class:`ServerBusy`,
    :class:`ConnectionLost`, or :class:`StreamError` with the error code of the server.
    """

    def __init__(
        self,
        url: str | Sequence[str] = URL,
        *,
        model: str | None = None,
        partial_model: str | None = None,
        language: str | None = None,
        encoding: Literal["pcm_s16le", "pcm_f32le"] = "pcm_s16le",
        sample_rate: int = 16_000,
        partials: bool = True,
        endpointing: Mapping[str, Any] | None = None,
        emotion: bool = False,
        speaker: bool = False,
        hotwords: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_s: float = 30.0,
        buffer_s: float = 180.0,
    ) -> None:
        options = {
            "model": model,
            "partial_model": partial_model,
            "language": language,
            "encoding": encoding,
            "sample_rate": sample_rate,
            "partials": partials,
            "endpointing": endpointing,
            "emotion": emotion,
            "speaker": speaker,
            "hotwords": hotwords,
        }
        self._start = {name: value for name, value in options.items() if value is not None}
        self._addresses = Addresses([url] if isinstance(url, str) else url)
        self._headers, self._retry_s = headers, retry_s
        self._rate = sample_rate
        self._width = 2 if encoding == "pcm_s16le" else 4  # bytes per sample
        self._max_buffered = round(buffer_s * sample_rate)
        self._buffer = bytearray()  # positions below are samples since the start of the stream
        self._buffer_from = self._sent = self._final_end = 0
        self._processed = self._furthest = self._window = 0
        self._finalize_at: list[int] = []
        self._finalized = -1
        self._finished = self._end_sent = False
        self._seq = self._utterances = self._stalled_drops = 0
        self._voices: dict[str, str] = {}
        self._events: deque[Event] = deque()
        self._error: Event = {}
        self._done: Event | None = None
        self._failure: StreamError | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.id: str | None = None

    async def __aenter__(self) -> "StreamClient":
        self._task = asyncio.create_task(self._run(await self._connect()))
        self._task.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def send(self, pcm: bytes) -> None:
        """Queue audio, split anywhere; waits while ``buffer_s`` of it is not sent yet."""
        for at in range(0, len(pcm), self._rate):
            await self._until(lambda: self._over or self._end - self._sent < self._max_buffered)
            if self._failure is not None:
                raise self._failure
            if self._finished or self._over:
                raise StreamError("finished", "the stream is finished and takes no more audio")
            self._buffer += pcm[at : at + self._rate]
            self._changed.set()

    async def finalize(self) -> None:
        """End the utterance here: its final follows at once."""
        if self._finalize_at[-1:] != [self._end]:
            self._finalize_at.append(self._end)
            self._changed.set()

    async def finish(self) -> None:
        """End the audio; the last finals and ``done`` follow."""
        self._finished = True
        self._changed.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        await self._until(lambda: self._over or bool(self._events))
        if self._events:
            self._changed.set()
            return self._events.popleft()
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    @property
    def _over(self) -> bool:
        return self._task is None or self._task.done()

    @property
    def _end(self) -> int:
        """The position after the last whole sample of ``send``."""
        return self._buffer_from + len(self._buffer) // self._width

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _run(self, socket: ClientConnection) -> None:
        """Read and write, on one connection after the other, until ``done`` or a failure."""
        try:
            while self._done is None:
                try:
                    await self._exchange(socket)
                except ConnectionLost as drop:
                    socket = await self._connect(drop)
            self._events.append(self._done)
        except StreamError as failure:
            self._failure = failure
        except Exception as error:
            self._failure = StreamError("protocol_error", f"unexpected message: {error!r}")
        finally:
            await socket.close()

    async def _exchange(self, socket: ClientConnection) -> None:
        writer = asyncio.create_task(self._write(socket))
        try:
            while True:
                async with asyncio.timeout(CLOSE_S if self._done else None):
                    self._receive(json.loads(await socket.recv()))
                await self._until(lambda: len(self._events) < MAX_UNREAD_EVENTS)
        except TimeoutError:
            return
        except ConnectionClosed as closed:
            # a server that is being stopped sends ``done`` too, but does not close with 1000
            if self._done and (closed.rcvd is None or closed.rcvd.code == 1000):
                return
            raise closed_error(closed, self._error) from closed
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        last_sent_at = loop.time()
        with contextlib.suppress(ConnectionClosed):  # the reader handles it
            while not self._end_sent:
                message = self._next_message()
                if message is None:
                    self._changed.clear()
                    try:
                        async with asyncio.timeout_at(last_sent_at + KEEPALIVE_S):
                            await self._changed.wait()
                        continue
                    except TimeoutError:
                        message = json.dumps({"type": "keepalive"})
                await socket.send(message)
                last_sent_at = loop.time()

    def _next_message(self) -> str | bytes | None:
        """The message to send now, if any; audio and control messages keep their order."""
        limit = min(
            self._end, self._processed + self._window, self._sent + round(MESSAGE_S * self._rate)
        )
        cut = next((position for position in self._finalize_at if position > self._finalized), None)
        if cut is not None:
            if cut <= self._sent:
                self._finalized = cut
                return json.dumps({"type": "finalize"})
            limit = min(limit, cut)
        if limit > self._sent:
            begin, end = ((at - self._buffer_from) * self._width for at in (self._sent, limit))
            self._sent = limit
            audio = bytes(self._buffer[begin:end])
            self._trim()
            self._changed.set()  # wakes a waiting ``send``
            return audio
        if self._finished and self._sent == self._end:
            self._end_sent = True
            return json.dumps({"type": "end"})
        return None

    def _receive(self, event: Event) -> None:
        kind = event["type"]
        self._changed.set()
        if kind == "done":
            if self._end_sent and not self._error:
                self._done = event
            return  # the close code that follows decides whether the stream is complete
        self._error = event if kind == "error" else {}
        if kind == "progress":
            self._processed = max(self._processed, round(event["processed_s"] * self._rate))
            if self._processed > self._furthest:
                self._furthest, self._stalled_drops = self._processed, 0
            return
        if "seq" in event:
            if event["seq"] <= self._seq:
                return  # sent again after a resume
            self._seq = event["seq"]
        if kind == "final":
            self._final_end = max(self._final_end, round(event["end"] * self._rate))
            self._utterances = event["utterance"] + 1
            if "speaker" in event:
                self._voices[event["speaker"]] = event["voice"]
            self._stalled_drops = 0
            self._trim()
        elif kind == "partial" and self._events and self._events[-1]["type"] == "partial":
            self._events.pop()
        self._events.append(event)

    def _trim(self) -> None:
        """Drop the audio that no resumed stream needs."""
        begin = min(max(self._final_end, self._sent - self._max_buffered), self._sent)
        if begin > self._buffer_from:
            del self._buffer[: (begin - self._buffer_from) * self._width]
            self._buffer_from = begin
            self._finalize_at = [position for position in self._finalize_at if position >= begin]

    async def _connect(self, drop: ConnectionLost | None = None) -> ClientConnection:
        """A connection on which the stream begins, or continues after a ``drop``."""
        now = asyncio.get_running_loop().time
        give_up_at = now() + self._retry_s
        failure: StreamError | None = drop
        jitter_s, untried = 0.0, len(self._addresses)
        if drop is not None:
            self._addresses.failed(drop)
            self._stalled_drops += 1
            if self._stalled_drops > MAX_STALLED_DROPS:
                raise drop
            jitter_s, untried = random.uniform(0.0, FIRST_DELAY_S), 0
        while True:
            url, wait_s = self._addresses.next()
            wait_s = max(wait_s, jitter_s)
            if failure is not None and untried <= 0 and now() + wait_s >= give_up_at:
                raise failure
            try:
                # At first the server may load its models for longer than ``retry_s``.
                async with asyncio.timeout_at(None if untried > 0 else give_up_at):
                    await asyncio.sleep(wait_s)
                    socket = await self._open(url)
            except (ServerBusy, ConnectionLost) as error:
                self._addresses.failed(error)
                failure = error
            except TimeoutError:
                assert failure is not None
                raise failure from None
            else:
                self._addresses.connected()
                return socket
            jitter_s, untried = 0.0, untried - 1

    async def _open(self, url: str) -> ClientConnection:
        """A connection whose server is ready for the stream, new or resumed."""
        socket = await open_socket(url, self._headers)
        try:
            async with asyncio.timeout(READY_S):
                self._continue(await self._handshake(socket))
        except ConnectionClosed as closed:
            raise closed_error(closed, self._error) from closed
        except BaseException as error:
            await socket.close()
            if isinstance(error, TimeoutError):
                raise ConnectionLost(f"the server was not ready within {READY_S:g} s") from None
            raise
        return socket

    async def _handshake(self, socket: ClientConnection) -> Event:
        """Send the start message; return the ``ready`` event."""
        start: Event = {"type": "start", **self._start}
        if self.id is not None:
            start["resume"] = {
                "session": self.id,
                "seq": self._seq,
                "from_s": self._buffer_from / self._rate,  # the end of the last final
                "utterances": self._utterances,
                "voices": self._voices,
            }
        await socket.send(json.dumps(start))
        self._error, self._done = {}, None
        while True:
            event: Event = json.loads(await socket.recv())
            if event["type"] == "ready":
                return event
            if event["type"] == "error":
                self._error = event

    def _continue(self, ready: Event) -> None:
        """Continue at the position that the server asks for."""
        position = round(ready["audio_from_s"] * self._rate)
        if not self._buffer_from <= position <= self._end:
            raise StreamError("audio_gone", f"no audio from {ready['audio_from_s']} s is kept")
        self.id = ready["session"]
        self._window = round(ready["window_s"] * self._rate)
        self._sent = self._processed = position
        self._finalized, self._end_sent = position - 1, False
