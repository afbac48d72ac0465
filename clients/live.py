"""Live speech recognition over a WebSocket: an asyncio client that survives a dropped connection.

    async with LiveSession("ws://127.0.0.1:8000/v1/ws", language="en") as session:
        await session.send(pcm)  # as it comes from the microphone
        await session.finish()
        async for event in session:
            if event["type"] == "final":
                ...

It needs the package ``websockets``; the command line at the end needs ``av`` for other files than
WAV and raw PCM.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import random
import sys
import wave
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

Event = dict[str, Any]
"""A JSON event of the server, such as ``{"type": "final", "seq": 7, "text": …}``."""

URL = "ws://127.0.0.1:8000/v1/ws"
BYTES_PER_SAMPLE = {"pcm_s16le": 2, "pcm_f32le": 4}

MESSAGE_S = 0.1
"""Seconds of audio in one message."""

KEEPALIVE_S = 5.0
"""After so long without audio the server is told that the stream still lives."""

PING_S, PONG_S = 5.0, 10.0
"""A connection without a sign of life is given up after so long."""

READY_S = 120.0
"""How long a server may take to load its models."""

GOODBYE_S = 5.0
"""How long a server may take to close after ``done``."""

MAX_UNREAD_EVENTS = 10_000
MAX_FRUITLESS_DROPS = 8
"""A stream whose connection drops so often without getting any further is given up."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 2.0
DEFAULT_RETRY_AFTER_S = 2.0

TRY_AGAIN_LATER = 1013
REFUSALS = frozenset({1000, 1002, 1003, 1007, 1008, 1009, 1010, *range(4000, 5000)})
"""Close codes by which a server means it; after any other the stream is resumed."""


class LiveError(Exception):
    """The stream is over before its end; ``code`` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ServerBusy(LiveError):
    """The server takes no more streams now; it may after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__("overloaded", message)
        self.retry_after_s = retry_after_s


class ConnectionLost(LiveError):
    """The server cannot be reached."""

    def __init__(self, message: str) -> None:
        super().__init__("connection_lost", message)


class LiveSession:
    """One stream of mono PCM to the server and of events back; an async context manager.

    Iterate over it, best in a task of its own, for the events ``speech_start``, ``partial``,
    ``final``, ``speech_end``, ``error`` and ``done``, with times in seconds of the stream. Of
    partials that nobody has read yet only the latest is kept. The iteration ends with ``done``.

    When the connection drops, the stream is resumed, for up to ``retry_s`` after each drop: every
    final comes exactly once, and speakers keep their labels. For that the audio since the last
    final is kept, at most the latest ``buffer_s``, which should exceed the longest utterance. What
    was not sent yet is bounded by ``buffer_s`` as well; then ``send`` waits.

    Entering the context, ``send`` and the iteration raise :class:`ServerBusy`,
    :class:`ConnectionLost`, or :class:`LiveError` with the code that the server said.
    """

    def __init__(
        self,
        url: str = URL,
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
        wishes = {
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
        self._start = {name: wish for name, wish in wishes.items() if wish is not None}
        self._url = url
        self._headers = headers
        self._retry_s = retry_s
        self._rate = sample_rate
        self._width = BYTES_PER_SAMPLE[encoding]
        self._buffer = round(buffer_s * sample_rate)
        self._message = round(MESSAGE_S * sample_rate)

        # positions count samples from the beginning of the stream
        self._held = bytearray()
        self._held_from = 0
        self._sent = 0
        self._final_end = 0
        self._finalize_at: list[int] = []
        self._finalized = -1
        self._finished = self._end_sent = False
        self._window = 0
        self._processed = self._furthest = 0

        self._seq = 0
        self._utterances = 0
        self._voices: dict[str, str] = {}
        self._events: deque[Event] = deque()
        self._said: Event = {}
        self._goodbye: Event | None = None
        self._failure: LiveError | None = None
        self._fruitless_drops = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.id: str | None = None

    async def __aenter__(self) -> "LiveSession":
        self._task = asyncio.create_task(self._run(await self._open()))
        self._task.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def send(self, pcm: bytes) -> None:
        """Queue audio, split anywhere; waits while ``buffer_s`` of it is not sent yet."""
        for at in range(0, len(pcm), self._rate):
            await self._until(lambda: self._over or self._end - self._sent < self._buffer)
            if self._failure is not None:
                raise self._failure
            if self._finished or self._over:
                raise LiveError("finished", "the stream was finished, it takes no more audio")
            self._held += pcm[at : at + self._rate]
            self._changed.set()

    async def finalize(self) -> None:
        """Close the utterance here: what was said so far becomes final at once."""
        if self._finalize_at[-1:] != [self._end]:
            self._finalize_at.append(self._end)
            self._changed.set()

    async def finish(self) -> None:
        """Say that no more audio comes; the last finals and ``done`` follow."""
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
        """How much audio there is, in whole samples."""
        return self._held_from + len(self._held) // self._width

    async def _until(self, come: Callable[[], bool]) -> None:
        while not come():
            self._changed.clear()
            await self._changed.wait()

    async def _run(self, socket: ClientConnection) -> None:
        """Read and write, on one connection after the other, until ``done`` or a failure."""
        try:
            while self._goodbye is None:
                try:
                    await self._converse(socket)
                except ConnectionLost as drop:
                    socket = await self._resume(drop)
            self._events.append(self._goodbye)
        except LiveError as failure:
            self._failure = failure
        except Exception as strange:
            self._failure = LiveError("protocol_error", f"the server made no sense: {strange!r}")
        finally:
            await socket.close()

    async def _converse(self, socket: ClientConnection) -> None:
        writer = asyncio.create_task(self._write(socket))
        try:
            while True:
                async with asyncio.timeout(GOODBYE_S if self._goodbye else None):
                    self._take(json.loads(await socket.recv()))
                await self._until(lambda: len(self._events) < MAX_UNREAD_EVENTS)
        except TimeoutError:
            return
        except ConnectionClosed as closed:
            # a server that is being stopped says ``done`` too, but does not close with 1000
            if self._goodbye and (closed.rcvd is None or closed.rcvd.code == 1000):
                return
            raise self._meaning(closed) from closed
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        quiet_since = loop.time()
        with contextlib.suppress(ConnectionClosed):  # the reader sees it too
            while not self._end_sent:
                message = self._next_message()
                if message is None:
                    self._changed.clear()
                    try:
                        async with asyncio.timeout_at(quiet_since + KEEPALIVE_S):
                            await self._changed.wait()
                        continue
                    except TimeoutError:
                        message = json.dumps({"type": "keepalive"})
                await socket.send(message)
                quiet_since = loop.time()

    def _next_message(self) -> str | bytes | None:
        """What to send now, if anything; audio and control messages keep their order."""
        limit = min(self._end, self._processed + self._window, self._sent + self._message)
        for position in self._finalize_at:
            if position > self._finalized:
                if position <= self._sent:
                    self._finalized = position
                    return json.dumps({"type": "finalize"})
                limit = min(limit, position)
                break
        if limit > self._sent:
            begin, end = ((at - self._held_from) * self._width for at in (self._sent, limit))
            self._sent = limit
            audio = bytes(self._held[begin:end])
            self._trim()
            self._changed.set()  # for a ``send`` that waits
            return audio
        if self._finished and self._sent == self._end:
            self._end_sent = True
            return json.dumps({"type": "end"})
        return None

    def _take(self, event: Event) -> None:
        kind, seq = event["type"], event.get("seq")
        if kind == "done":
            if self._end_sent and not self._said:
                self._goodbye = event
            return  # the close that follows says whether this is the end
        self._said = event if kind == "error" else {}
        if kind == "progress":
            self._processed = max(self._processed, round(event["processed_s"] * self._rate))
            if self._processed > self._furthest:
                self._furthest, self._fruitless_drops = self._processed, 0
            self._changed.set()
            return
        if seq is not None:
            if seq <= self._seq:
                return
            self._seq = seq
        if kind == "final":
            self._final_end = max(self._final_end, round(event["end"] * self._rate))
            self._utterances = event["utterance"] + 1
            if "speaker" in event:
                self._voices[event["speaker"]] = event["voice"]
            self._fruitless_drops = 0
            self._trim()
        elif kind == "partial" and self._events and self._events[-1]["type"] == "partial":
            self._events.pop()
        self._events.append(event)
        self._changed.set()

    def _trim(self) -> None:
        """Forget the audio that no resumed stream will ask for."""
        begin = min(max(self._final_end, self._sent - self._buffer), self._sent)
        if begin > self._held_from:
            del self._held[: (begin - self._held_from) * self._width]
            self._held_from = begin
            self._finalize_at = [position for position in self._finalize_at if position >= begin]

    async def _resume(self, drop: LiveError) -> ClientConnection:
        """A new connection on which the stream goes on."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._retry_s
        wait_s, delay_s = random.uniform(0.0, FIRST_DELAY_S), FIRST_DELAY_S
        self._fruitless_drops += 1
        while self._fruitless_drops <= MAX_FRUITLESS_DROPS and loop.time() < give_up_at:
            try:
                async with asyncio.timeout_at(give_up_at):
                    await asyncio.sleep(wait_s)
                    return await self._open()
            except ServerBusy as busy:
                drop, wait_s = busy, busy.retry_after_s
            except ConnectionLost as lost:
                drop, wait_s = lost, delay_s * random.uniform(0.5, 1.0)
                delay_s = min(2 * delay_s, LONGEST_DELAY_S)
            except TimeoutError:
                break
        raise drop

    async def _open(self) -> ClientConnection:
        """A connection whose server is ready for the stream, from its start or from a drop."""
        try:
            socket = await connect(
                self._url,
                additional_headers=self._headers,
                compression=None,  # audio does not shrink
                ping_interval=PING_S,
                ping_timeout=PONG_S,
                close_timeout=2.0,
            )
        except InvalidStatus as refused:
            raise _refusal(refused) from refused
        except (OSError, InvalidHandshake) as lost:
            raise ConnectionLost(f"{self._url}: {lost}") from lost
        try:
            async with asyncio.timeout(READY_S):
                self._begin(await self._greet(socket))
        except ConnectionClosed as closed:
            raise self._meaning(closed) from closed
        except BaseException as error:
            await socket.close()
            if isinstance(error, TimeoutError):
                raise ConnectionLost(f"the server was not ready within {READY_S:g} s") from None
            raise
        return socket

    async def _greet(self, socket: ClientConnection) -> Event:
        """Send the start frame; the answer of the server."""
        start: Event = {"type": "start", **self._start}
        if self.id is not None:
            from_s = self._held_from / self._rate  # the end of the last final
            start["resume"] = {
                "session": self.id,
                "seq": self._seq,
                "from_s": from_s,
                "utterances": self._utterances,
                "voices": self._voices,
            }
        await socket.send(json.dumps(start))
        self._said, self._goodbye = {}, None
        while True:
            event: Event = json.loads(await socket.recv())
            if event["type"] == "ready":
                return event
            if event["type"] == "error":
                self._said = event

    def _begin(self, ready: Event) -> None:
        """Go on from where the server wants it."""
        position = round(ready["audio_from_s"] * self._rate)
        if not self._held_from <= position <= self._end:
            raise LiveError("audio_gone", f"no audio from {ready['audio_from_s']} s is held")
        self.id = ready["session"]
        self._window = round(ready["window_s"] * self._rate)
        self._sent = self._processed = position
        self._finalized, self._end_sent = position - 1, False

    def _meaning(self, closed: ConnectionClosed) -> LiveError:
        """What a closed socket says: a refusal, or a drop to recover from."""
        code = closed.rcvd.code if closed.rcvd else None
        reason = closed.rcvd.reason if closed.rcvd else ""
        message = self._said.get("message") or reason or f"the connection closed ({code})"
        if code == TRY_AGAIN_LATER:
            wait_s = self._said.get("retry_after_s", DEFAULT_RETRY_AFTER_S)
            return ServerBusy(message, wait_s)
        if code in REFUSALS:
            return LiveError(self._said.get("code") or f"closed_{code}", message)
        return ConnectionLost(message)


def _refusal(refused: InvalidStatus) -> LiveError:
    """What an HTTP answer to the handshake says."""
    response = refused.response
    said = response.body.decode(errors="replace").strip()[:500] if response.body else ""
    message = said or f"HTTP {response.status_code}"
    if response.status_code in (429, 503):
        try:
            wait_s = float(response.headers["Retry-After"])
        except (KeyError, ValueError):  # none, or a date
            wait_s = DEFAULT_RETRY_AFTER_S
        return ServerBusy(message, wait_s)
    if response.status_code >= 500:
        return ConnectionLost(message)
    return LiveError(f"http_{response.status_code}", message)


# The command line


def read_audio(name: str, raw_rate: int) -> tuple[int, Iterator[bytes]]:
    """The rate and the 16-bit mono audio of a file, or of standard input for ``-``.

    Standard input is WAV, or raw PCM at ``raw_rate`` like files named ``.raw`` and ``.pcm``.
    """
    file = cast(BufferedReader, sys.stdin.buffer) if name == "-" else Path(name).open("rb")  # noqa: SIM115
    if file.peek(4)[:4] == b"RIFF":
        with contextlib.suppress(wave.Error):
            sound = wave.open(file)  # noqa: SIM115
            if (sound.getnchannels(), sound.getsampwidth()) == (1, 2):
                rate = sound.getframerate()
                return rate, iter(lambda: sound.readframes(round(MESSAGE_S * rate)), b"")
    elif name == "-" or Path(name).suffix in (".raw", ".pcm"):
        size = 2 * round(MESSAGE_S * raw_rate)
        return raw_rate, iter(lambda: file.read(size), b"")
    if name == "-":
        raise SystemExit("standard input must be 16-bit mono, as WAV or raw PCM")
    file.close()
    if importlib.util.find_spec("av") is None:
        raise SystemExit(f"{name}: only 16-bit mono WAV can be read without the package `av`")
    return 16_000, _decoded(name)


def _decoded(name: str) -> Iterator[bytes]:
    import av

    with av.open(name) as container:
        resampler = av.AudioResampler("s16", "mono", 16_000)
        for frame in itertools.chain(container.decode(audio=0), [None]):
            for block in resampler.resample(frame):
                yield block.to_ndarray().tobytes()


async def _feed(session: LiveSession, audio: Iterator[bytes], rate: int, realtime: bool) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    try:
        while chunk := await asyncio.to_thread(next, audio, b""):
            await session.send(chunk)
            due += len(chunk) / 2 / rate
            if realtime:
                await asyncio.sleep(due - loop.time())
    finally:
        await session.finish()


def line(event: Event) -> str:
    """A final as a line of text."""
    emotion: dict[str, float] = event.get("emotion") or {}
    notes = [event.get("speaker"), max(emotion, key=emotion.__getitem__, default=None)]
    said = "".join(f"{note}  " for note in notes if note)
    return f"{event['start']:8.2f} {event['end']:8.2f}  {said}{event['text'].strip()}"


async def _stream(arguments: argparse.Namespace) -> None:
    rate, audio = read_audio(arguments.file, arguments.rate)
    key = os.environ.get("SPEECHGRAPH_KEY")
    async with LiveSession(
        arguments.url,
        model=arguments.model,
        language=arguments.language,
        sample_rate=rate,
        headers={"X-API-Key": key} if key else None,
    ) as session:
        feeding = asyncio.create_task(_feed(session, audio, rate, arguments.speed == "realtime"))
        try:
            async for event in session:
                if arguments.json:
                    sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
                elif event["type"] == "final":
                    sys.stdout.write(line(event) + "\n")
                elif event["type"] == "error":
                    sys.stderr.write(f"{event.get('code')}: {event.get('message')}\n")
                sys.stdout.flush()
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


def main() -> None:
    """Send one recording, or what comes through a pipe, and print what was said.

    A service that asks for an API key gets that in the environment's SPEECHGRAPH_KEY.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", help="a sound file, or - for standard input")
    parser.add_argument("--url", default=URL)
    parser.add_argument("--model")
    parser.add_argument("--language")
    parser.add_argument("--rate", type=int, default=16_000, help="of raw PCM, Hz")
    parser.add_argument("--speed", choices=["realtime", "max"], default="realtime")
    parser.add_argument("--json", action="store_true", help="every event, one JSON per line")
    try:
        asyncio.run(_stream(parser.parse_args()))
    except (LiveError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
