"""Real-time clients: many sockets in one process, each of which sends its part of the audio.

Built on the sans-IO half of ``websockets``, as the benchmark shares the machine with the server:
sending a frame costs some 30 µs.
"""

import asyncio
import math
import time
from dataclasses import dataclass, field

import numpy as np
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from benchmarks.speech_track import FRAME_S, Track, frames, plain
from benchmarks.stream_dialects import DIALECTS, Answer, Dialect, DialectOptions

LAST_ANSWER_TIMEOUT_S = 30.0
"""How long a stream waits for the last answer after it has sent its end."""
CONNECT_S = 60.0


@dataclass(frozen=True)
class ClientOptions:
    """The streams of one client process; times are those of ``time.monotonic``.

    ``numbers`` are the streams' numbers, ``starts`` the times of their first frames, ``seconds``
    their duration, ``steady`` the time during which everything is measured.
    """

    url: str
    dialect: str
    model: str | None
    window_s: float
    shift_s: float
    gap_s: float
    numbers: tuple[int, ...] = ()
    starts: tuple[float, ...] = ()
    seconds: float = 0.0
    steady: tuple[float, float] = (0.0, 0.0)

    @property
    def frames(self) -> int:
        """Number of frames of each stream."""
        return round(self.seconds / FRAME_S)

    def protocol(self) -> Dialect:
        """The dialect of a new stream."""
        options = DialectOptions(self.model, self.frames, self.window_s, self.shift_s)
        return DIALECTS[self.dialect](options)


@dataclass
class Measurements:
    """What the streams of one process measured during the steady time, in seconds.

    ``benchmarks/streams.py`` defines ``lags``, ``words``, ``firsts`` and ``finals``; ``late`` are
    the delays of sending frames, ``cpu_s`` is the processor time of the clients themselves.
    """

    lags: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


class _ClientStream(asyncio.Protocol):
    """One socket from its handshake to the last answer."""

    def __init__(
        self, options: ClientOptions, number: int, start: float, measured: Measurements
    ) -> None:
        self._options = options
        self._start = start
        self._measured = measured
        self._loop = asyncio.get_running_loop()
        track = Track.of_heldout(options.gap_s)
        # The golden ratio spreads any number of them evenly over the track.
        offset = number * 0.6180339887 % 1 * track.seconds // FRAME_S * FRAME_S
        self._dialect = options.protocol()
        kind = np.float32 if self._dialect.floats else np.int16
        self._audio = frames(kind, options.gap_s)
        self._first_frame = round(offset / FRAME_S)
        self._reference = track.words_from(offset)
        self._expected: list[tuple[str, float]] = []
        self._onsets = track.onsets_from(offset)
        self._next_onset = next(self._onsets)
        self._matched = 0
        self._utterance = 0
        self._text = ""
        self._sent: list[float] = []
        self._ended_at: float | None = None
        self._protocol = ClientProtocol(parse_uri(options.url.rstrip("/") + self._dialect.path))
        self._transport: asyncio.Transport | None = None
        self._opened = False
        self.done: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        received = time.monotonic()
        self._protocol.receive_data(data)
        try:
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    if event.opcode is Opcode.TEXT:
                        self._receive(bytes(event.data).decode(), received)
                elif self._protocol.handshake_exc is not None:
                    raise self._protocol.handshake_exc
                elif not self._opened:
                    self._opened = True
                    if self._dialect.opening is not None:
                        self._protocol.send_text(self._dialect.opening.encode())
                    self._loop.call_at(self._start, self._send_frame)
        except Exception as error:
            self._end(f"{type(error).__name__}: {error}")
        self._flush()

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended_at is None:
            self._end(f"the server closed: {self._protocol.close_code} {exc or ''}")
        else:
            self._finish(time.monotonic())

    def _flush(self) -> None:
        assert self._transport is not None
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)

    def _send_frame(self) -> None:
        """Send the frame that is due, and schedule the next."""
        if self.done.done() or self._protocol.state is not State.OPEN:
            return
        now = time.monotonic()
        number = len(self._sent)
        if number == self._options.frames:
            self._protocol.send_text(self._dialect.ending.encode())
            self._ended_at = now
            self._loop.call_later(LAST_ANSWER_TIMEOUT_S, self._end, "no last answer came")
        else:
            self._protocol.send_binary(self._audio[(self._first_frame + number) % len(self._audio)])
            self._sent.append(now)
            due = self._start + number * FRAME_S
            if self._is_steady(now):
                self._measured.late.append(now - due)
            self._loop.call_at(due + FRAME_S, self._send_frame)
        self._flush()

    def _receive(self, message: str, received: float) -> None:
        answer = self._dialect.parse(message)
        ends = self._new_words(answer, received)
        covers_s = answer.covers_s
        if covers_s is None and self._options.dialect == "sherpa5" and ends:
            covers_s = ends[-1]
        if self._is_steady(received):
            self._measured.words += [received - self._time_sent(end) for end in ends]
            if covers_s is not None:
                self._measured.lags.append(received - self._time_sent(covers_s))
        if answer.text and answer.text != self._text and covers_s is not None:
            self._measure_first(covers_s, received)
        if answer.text is not None:
            self._text = answer.text
        if answer.last:
            self._finish(received)

    def _new_words(self, answer: Answer, received: float) -> list[float]:
        """The ends of the words that this answer is the first to have.

        In order on both sides: a word matches the next equal word of the reference that was sent.
        """
        if answer.utterance != self._utterance:
            self._utterance, self._matched = answer.utterance, 0
        if not answer.text or not self._sent:
            return []
        spoken_s = len(self._sent) * FRAME_S
        while not self._expected or self._expected[-1][1] <= spoken_s:
            self._expected.append(next(self._reference))
        words = answer.text.split()
        ends = []
        for number, word in enumerate(words[self._matched :], start=self._matched):
            spoken = plain(word)
            for place, (expected, end) in enumerate(self._expected):
                if end > spoken_s:
                    break
                if expected == spoken:
                    ends.append(end)
                    del self._expected[: place + 1]
                    self._matched = number + 1
                    break
        # The last word may still change.
        self._matched = max(self._matched, len(words) - 1)
        return ends

    def _measure_first(self, covers_s: float, received: float) -> None:
        """Measure the delay of a sentence if this is its first text."""
        onset = None
        while self._next_onset <= covers_s:
            onset, self._next_onset = self._next_onset, next(self._onsets)
        if onset is not None and self._is_steady(received):
            self._measured.firsts.append(received - self._time_sent(onset))

    def _time_sent(self, position_s: float) -> float:
        """The time at which the frame with the sample before a position was sent."""
        frame = math.ceil(round(position_s / FRAME_S, 3)) - 1
        return self._sent[min(max(frame, 0), len(self._sent) - 1)]

    def _is_steady(self, now: float) -> bool:
        first, last = self._options.steady
        return first <= now < last

    def _finish(self, received: float) -> None:
        if not self.done.done():
            if self._ended_at is None:
                self._end("the server ended the stream")
            else:
                self._measured.finals.append(received - self._ended_at)
                self._end(None)

    def _end(self, failure: str | None) -> None:
        if not self.done.done():
            self.done.set_result(None)
            if failure is not None:
                self._measured.failures.append(failure)
            if self._transport is not None:
                if self._protocol.state is State.OPEN:
                    self._protocol.send_close(1000)
                    self._flush()
                self._transport.close()


async def _run_stream(
    options: ClientOptions, number: int, start: float, measured: Measurements
) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(start - loop.time() - 1.0)  # the handshake comes before the first frame
    uri = parse_uri(options.url)
    try:
        _, stream = await loop.create_connection(
            lambda: _ClientStream(options, number, start, measured), uri.host, uri.port
        )
        async with asyncio.timeout(CONNECT_S + options.seconds + LAST_ANSWER_TIMEOUT_S):
            await stream.done
    except (OSError, TimeoutError) as error:
        measured.failures.append(f"{type(error).__name__}: {error}")


async def _run_all(options: ClientOptions) -> Measurements:
    loop = asyncio.get_running_loop()
    measured = Measurements()

    def account(sign: int) -> None:
        measured.cpu_s += sign * time.process_time()

    for sign, when in zip((-1, 1), options.steady, strict=True):
        loop.call_at(when, account, sign)
    pairs = zip(options.numbers, options.starts, strict=True)
    await asyncio.gather(*(_run_stream(options, n, start, measured) for n, start in pairs))
    return measured


def prepare(gap_s: float) -> None:
    """Decode the audio before the measurement."""
    for kind in (np.int16, np.float32):
        frames(kind, gap_s)


def run_clients(options: ClientOptions) -> Measurements:
    """Run the streams of one process until the last has ended."""
    measured: Measurements = asyncio.run(_run_all(options))
    return measured
