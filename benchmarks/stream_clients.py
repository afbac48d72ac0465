"""Clients that speak in real time: many sockets in one process, each with its own piece of audio.

Built on the sans-IO half of ``websockets``, for the benchmark shares the machine with the server:
a frame costs some 30 µs to send.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import av
import numpy as np
from numpy.typing import NDArray
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

RATE = 16_000
FRAME_S = 0.1
_FRAME = round(RATE * FRAME_S)
HELDOUT = Path(__file__).parent.parent / "models" / "demo" / "audio" / "heldout"
GAP_S = 0.3
"""Between two clips, which have half a second of quiet themselves: enough to end an utterance."""
PATIENCE_S = 30.0
"""How long a stream waits for its last words after it has stopped."""
CONNECT_S = 60.0


@dataclass(frozen=True)
class Track:
    """Sentences one after the other, to be heard in a loop from anywhere.

    ``words`` are (word, end), ``onsets`` where sentences begin to be spoken; seconds, in order.
    """

    pcm: NDArray[np.int16]
    words: tuple[tuple[str, float], ...]
    onsets: tuple[float, ...]

    @staticmethod
    @cache
    def of_heldout(gap_s: float = GAP_S) -> "Track":
        """The held-out clips of the demo, Russian and English in turn; some three minutes."""
        lines = (HELDOUT / "reference.jsonl").read_text(encoding="utf-8").splitlines()
        clips = sorted(map(json.loads, lines), key=lambda clip: clip["file"][3:])
        pieces, words, onsets, at = [], [], [], 0
        for clip in clips:
            begin = at / RATE
            words += [(_plain(w["word"]), begin + w["end"]) for w in clip["words"]]
            onsets.append(begin + clip["words"][0]["start"])
            pieces += [_decoded(HELDOUT / clip["file"]), np.zeros(round(gap_s * RATE), np.int16)]
            at += sum(len(piece) for piece in pieces[-2:])
        at -= at % _FRAME
        return Track(np.concatenate(pieces)[:at], tuple(words), tuple(onsets))

    @property
    def seconds(self) -> float:
        """Length of the loop."""
        return len(self.pcm) / RATE

    @property
    def spoken_share(self) -> float:
        """Of the loop, from the first word of each sentence to its last."""
        ends = [end for _, end in self.words]
        later = (*self.onsets[1:], math.inf)
        last = [max(end for end in ends if end < onset) for onset in later]
        return (sum(last) - sum(self.onsets)) / self.seconds

    def samples(self, seconds: float, offset: float = 0.0) -> NDArray[np.int16]:
        """What is heard from ``offset`` on."""
        first = round(offset * RATE)
        return np.take(self.pcm, range(first, first + round(seconds * RATE)), mode="wrap")

    def words_from(self, offset: float) -> Iterator[tuple[str, float]]:
        """Words and their ends, in seconds since ``offset``, without end."""
        for base in self._rounds(offset):
            yield from ((word, base + end) for word, end in self.words if base + end > 0)

    def onsets_from(self, offset: float) -> Iterator[float]:
        """Where sentences begin, in seconds since ``offset``, without end."""
        for base in self._rounds(offset):
            yield from (base + onset for onset in self.onsets if base + onset >= 0)

    def _rounds(self, offset: float) -> Iterator[float]:
        base = -offset
        while True:
            yield base
            base += self.seconds


def _decoded(path: Path) -> NDArray[np.int16]:
    with av.open(path) as container:
        resampler = av.AudioResampler("s16", "mono", RATE)
        blocks = [
            block.to_ndarray()[0]
            for frame in (*container.decode(audio=0), None)
            for block in resampler.resample(frame)
        ]
    return np.concatenate(blocks)


def _plain(word: str) -> str:
    return "".join(re.findall(r"\w+", word.lower()))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said.

    ``covers_s`` is the end of the audio that it speaks of, in seconds of the stream, None where
    only its words can tell; ``text`` is what is known of ``utterance`` so far, None if it does not
    say; ``last`` if nothing follows.
    """

    covers_s: float | None = None
    text: str | None = None
    utterance: int = 0
    last: bool = False


class Dialect(Protocol):
    """How one kind of server is spoken to, for one stream: ``floats`` or PCM16."""

    path: str
    opening: str | None
    ending: str
    floats: bool

    def hear(self, message: str) -> Answer:
        """What a message says."""
        ...


class _Words:
    """The defaults of a dialect."""

    opening: str | None = None
    floats = False

    def __init__(self, options: "Options") -> None:
        self.options = options
        self.answers = 0
        self.utterance = 0

    @property
    def query(self) -> str:
        return f"?{urlencode({'model': self.options.model})}" if self.options.model else ""


class Native(_Words):
    """``/v1/ws``, the native form: partials and progress say what they cover."""

    path = "/v1/ws"
    ending = '{"type": "end"}'

    def __init__(self, options: "Options") -> None:
        super().__init__(options)
        self.opening = json.dumps({"type": "start", "model": options.model})

    def hear(self, message: str) -> Answer:
        said = json.loads(message)
        match said["type"]:
            case "progress":
                return Answer(said["processed_s"])
            case "partial":
                return Answer(said["end"], said["text"], said["utterance"])
            case "final":
                return Answer(None, said["text"], said["utterance"])
            case "error":
                raise ConnectionError(said["message"])
            case kind:
                return Answer(last=kind == "done")


class V1(_Words):
    """``/v1/ws``, the v1 form: finals only, and they cover what lies before their end."""

    path = "/v1/ws"
    ending = "END_STREAM"

    def __init__(self, options: "Options") -> None:
        super().__init__(options)
        tra = {"model": options.model} if options.model else {}
        self.opening = json.dumps({"settings": {"tasks": ["transcribe"], "tra": tra}})

    def hear(self, message: str) -> Answer:
        said = json.loads(message)
        if "error" in said:
            raise ConnectionError(said["error"])
        self.utterance += 1
        return Answer(said["end"], said["text"], self.utterance)


class Sherpa5(_Words):
    """``/ws`` of the Vosk 5 server: a text that grows (only its words tell), or text by pieces."""

    ending = '{"eof": 1}'
    opening: str | None = json.dumps({"config": {"sample_rate": RATE, "wait_null_answers": False}})

    def __init__(self, options: "Options") -> None:
        super().__init__(options)
        self.path = f"/ws{self.query}"

    def hear(self, message: str) -> Answer:
        said = json.loads(message)
        if said["error"]:
            raise ConnectionError(said["error"])
        data, last = said["data"], said["last_message"]
        if isinstance(data, str):
            return Answer(None, data, last=last)
        self.utterance += 1
        ends = [word["end"] for word in data["result"]]
        return Answer(ends[-1] if ends else None, data["text"], self.utterance, last)


class Classic(_Words):
    """The vosk-server: the n-th answer covers the n-th frame."""

    ending = '{"eof": 1}'
    opening: str | None = json.dumps({"config": {"sample_rate": RATE}})

    def __init__(self, options: "Options") -> None:
        super().__init__(options)
        self.path = f"/vosk{self.query}"

    def hear(self, message: str) -> Answer:
        said = json.loads(message)
        if "error" in said:
            raise ConnectionError(said["error"])
        self.answers += 1
        if self.answers > self.options.frames:
            return Answer(last=True)
        covers_s = self.answers * FRAME_S
        if "partial" in said:
            return Answer(covers_s, said["partial"], self.utterance)
        answer = Answer(covers_s, said.get("text"), self.utterance)
        self.utterance += 1
        return answer


class SherpaOnnx(_Words):
    """sherpa-onnx's streaming servers: the n-th answer is that to the n-th chunk of the model."""

    path = "/"
    ending = "Done"
    floats = True

    def hear(self, message: str) -> Answer:
        if message == "Done!":
            return Answer(last=True)
        said = json.loads(message)
        chunk_s = self.options.window_s + self.answers * self.options.shift_s
        self.answers += 1
        return Answer(chunk_s, said["text"], said["segment"])


DIALECTS: dict[str, Callable[["Options"], Dialect]] = {
    "native": Native,
    "v1": V1,
    "sherpa5": Sherpa5,
    "classic": Classic,
    "sherpa-onnx": SherpaOnnx,
}


@dataclass(frozen=True)
class Options:
    """What the streams of one process are to do; times are those of ``time.monotonic``."""

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
        """Frames of each stream."""
        return round(self.seconds / FRAME_S)


@dataclass
class Heard:
    """What the streams of one process measured while all were running, in seconds.

    ``lags``, ``words`` and ``firsts`` are explained in ``benchmarks/streams.py``; ``late`` is how
    much after its time a frame was sent, ``cpu_s`` what the clients themselves took.
    """

    lags: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


class _Stream(asyncio.Protocol):
    """One socket from its handshake to the last answer."""

    def __init__(self, options: Options, number: int, start: float, heard: Heard) -> None:
        self._options = options
        self._start = start
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        track = Track.of_heldout(options.gap_s)
        # The golden ratio spreads any number of them evenly over the track.
        offset = number * 0.6180339887 % 1 * track.seconds // FRAME_S * FRAME_S
        self._dialect = DIALECTS[options.dialect](options)
        kind = np.float32 if self._dialect.floats else np.int16
        self._audio = _audio(kind, options.gap_s)
        self._at = round(offset / FRAME_S)
        self._reference = track.words_from(offset)
        self._expected: list[tuple[str, float]] = []
        self._onsets = track.onsets_from(offset)
        self._next_onset = next(self._onsets)
        self._settled = 0
        self._utterance = 0
        self._text = ""
        self._sent: list[float] = []
        self._stopped: float | None = None
        self._protocol = ClientProtocol(parse_uri(options.url.rstrip("/") + self._dialect.path))
        self._transport: asyncio.Transport | None = None
        self._opened = False
        self.over: asyncio.Future[None] = self._loop.create_future()

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
                        self._hear(bytes(event.data).decode(), received)
                elif self._protocol.handshake_exc is not None:
                    raise self._protocol.handshake_exc
                elif not self._opened:
                    self._opened = True
                    if self._dialect.opening is not None:
                        self._protocol.send_text(self._dialect.opening.encode())
                    self._loop.call_at(self._start, self._speak)
        except Exception as error:
            self._end(f"{type(error).__name__}: {error}")
        self._flush()

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stopped is None:
            self._end(f"the server closed: {self._protocol.close_code} {exc or ''}")
        else:
            self._finish(time.monotonic())

    def _flush(self) -> None:
        assert self._transport is not None
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)

    def _speak(self) -> None:
        """Send the frame that is due, and come back for the next."""
        if self.over.done() or self._protocol.state is not State.OPEN:
            return
        now = time.monotonic()
        number = len(self._sent)
        if number == self._options.frames:
            self._protocol.send_text(self._dialect.ending.encode())
            self._stopped = now
            self._loop.call_later(PATIENCE_S, self._end, "no last answer came")
        else:
            self._protocol.send_binary(self._audio[(self._at + number) % len(self._audio)])
            self._sent.append(now)
            due = self._start + number * FRAME_S
            if self._steady(now):
                self._heard.late.append(now - due)
            self._loop.call_at(due + FRAME_S, self._speak)
        self._flush()

    def _hear(self, message: str, received: float) -> None:
        answer = self._dialect.hear(message)
        ends = self._new_words(answer, received)
        covers_s = answer.covers_s
        if covers_s is None and self._options.dialect == "sherpa5" and ends:
            covers_s = ends[-1]
        if self._steady(received):
            self._heard.words += [received - self._sent_at(end) for end in ends]
            if covers_s is not None:
                self._heard.lags.append(received - self._sent_at(covers_s))
        if answer.text and answer.text != self._text and covers_s is not None:
            self._first(covers_s, received)
        if answer.text is not None:
            self._text = answer.text
        if answer.last:
            self._finish(received)

    def _new_words(self, answer: Answer, received: float) -> list[float]:
        """Where the words end that this answer is the first to have.

        Both sides in order: a word is the next of the reference that sounds like it and was sent.
        """
        if answer.utterance != self._utterance:
            self._utterance, self._settled = answer.utterance, 0
        if not answer.text or not self._sent:
            return []
        spoken_s = len(self._sent) * FRAME_S
        while not self._expected or self._expected[-1][1] <= spoken_s:
            self._expected.append(next(self._reference))
        said = answer.text.split()
        ends = []
        for number, word in enumerate(said[self._settled :], start=self._settled):
            plain = _plain(word)
            for place, (expected, end) in enumerate(self._expected):
                if end > spoken_s:
                    break
                if expected == plain:
                    ends.append(end)
                    del self._expected[: place + 1]
                    self._settled = number + 1
                    break
        # The last word may still grow.
        self._settled = max(self._settled, len(said) - 1)
        return ends

    def _first(self, covers_s: float, received: float) -> None:
        """Whether this is the first that is said of a sentence."""
        onset = None
        while self._next_onset <= covers_s:
            onset, self._next_onset = self._next_onset, next(self._onsets)
        if onset is not None and self._steady(received):
            self._heard.firsts.append(received - self._sent_at(onset))

    def _sent_at(self, position_s: float) -> float:
        """When the frame with the sample before a position was sent."""
        frame = math.ceil(round(position_s / FRAME_S, 3)) - 1
        return self._sent[min(max(frame, 0), len(self._sent) - 1)]

    def _steady(self, now: float) -> bool:
        first, last = self._options.steady
        return first <= now < last

    def _finish(self, received: float) -> None:
        if not self.over.done():
            if self._stopped is None:
                self._end("the server said that the stream is over")
            else:
                self._heard.finals.append(received - self._stopped)
                self._end(None)

    def _end(self, failure: str | None) -> None:
        if not self.over.done():
            self.over.set_result(None)
            if failure is not None:
                self._heard.failures.append(failure)
            if self._transport is not None:
                if self._protocol.state is State.OPEN:
                    self._protocol.send_close(1000)
                    self._flush()
                self._transport.close()


@cache
def _audio(kind: type[np.float32] | type[np.int16], gap_s: float) -> tuple[bytes, ...]:
    """The track in frames."""
    pcm: NDArray[Any] = Track.of_heldout(gap_s).pcm
    if kind is np.float32:
        pcm = pcm.astype(np.float32) / np.float32(32768)
    return tuple(pcm[first : first + _FRAME].tobytes() for first in range(0, len(pcm), _FRAME))


async def _stream(options: Options, number: int, start: float, heard: Heard) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(start - loop.time() - 1.0)  # shake hands before the first frame is due
    uri = parse_uri(options.url)
    try:
        _, stream = await loop.create_connection(
            lambda: _Stream(options, number, start, heard), uri.host, uri.port
        )
        async with asyncio.timeout(CONNECT_S + options.seconds + PATIENCE_S):
            await stream.over
    except (OSError, TimeoutError) as error:
        heard.failures.append(f"{type(error).__name__}: {error}")


async def _all(options: Options) -> Heard:
    loop = asyncio.get_running_loop()
    heard = Heard()

    def account(sign: int) -> None:
        heard.cpu_s += sign * time.process_time()

    for sign, when in zip((-1, 1), options.steady, strict=True):
        loop.call_at(when, account, sign)
    pairs = zip(options.numbers, options.starts, strict=True)
    await asyncio.gather(*(_stream(options, n, start, heard) for n, start in pairs))
    return heard


def prepare(gap_s: float) -> None:
    """Decode the audio before anything is measured."""
    for kind in (np.int16, np.float32):
        _audio(kind, gap_s)


def speak(options: Options) -> Heard:
    """Run the streams of one process until the last has ended."""
    heard: Heard = asyncio.run(_all(options))
    return heard
