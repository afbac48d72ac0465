"""The protocols of live recognition servers, as the clients of the benchmark speak them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlencode

from benchmarks.speech_track import FRAME_S, RATE


@dataclass(frozen=True)
class DialectOptions:
    """What a dialect has to know of its stream.

    ``frames`` is the number of frames of the stream; ``window_s`` and ``shift_s`` are the audio of
    the first and of each further chunk of sherpa-onnx's model.
    """

    model: str | None
    frames: int
    window_s: float
    shift_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A message of a server.

    ``covers_s`` is the end of the recognised audio in seconds of the stream, None if only the words
    show it; ``text`` is the text of ``utterance`` so far, None if the message has none; ``last``
    if no message follows.
    """

    covers_s: float | None = None
    text: str | None = None
    utterance: int = 0
    last: bool = False


class Dialect(Protocol):
    """The protocol of one kind of server, for one stream; audio as ``floats`` or PCM16."""

    path: str
    opening: str | None
    ending: str
    floats: bool

    def parse(self, message: str) -> Answer:
        """Parse a message. Raises ConnectionError for an error of the server."""
        ...


class _Base:
    """The defaults of a dialect."""

    opening: str | None = None
    floats = False

    def __init__(self, options: DialectOptions) -> None:
        self.options = options
        self.answers = 0
        self.utterance = 0

    @property
    def query(self) -> str:
        return f"?{urlencode({'model': self.options.model})}" if self.options.model else ""


class Native(_Base):
    """``/v1/ws``, the native form: partials and progress state what they cover."""

    path = "/v1/ws"
    ending = '{"type": "end"}'

    def __init__(self, options: DialectOptions) -> None:
        super().__init__(options)
        self.opening = json.dumps({"type": "start", "model": options.model})

    def parse(self, message: str) -> Answer:
        received = json.loads(message)
        match received["type"]:
            case "progress":
                return Answer(received["processed_s"])
            case "partial":
                return Answer(received["end"], received["text"], received["utterance"])
            case "final":
                return Answer(None, received["text"], received["utterance"])
            case "error":
                raise ConnectionError(received["message"])
            case kind:
                return Answer(last=kind == "done")


class V1(_Base):
    """``/v1/ws``, the v1 form: finals only, which cover the audio up to their end."""

    path = "/v1/ws"
    ending = "END_STREAM"

    def __init__(self, options: DialectOptions) -> None:
        super().__init__(options)
        tra = {"model": options.model} if options.model else {}
        self.opening = json.dumps({"settings": {"tasks": ["transcribe"], "tra": tra}})

    def parse(self, message: str) -> Answer:
        received = json.loads(message)
        if "error" in received:
            raise ConnectionError(received["error"])
        self.utterance += 1
        return Answer(received["end"], received["text"], self.utterance)


class Sherpa5(_Base):
    """``/ws`` of the Vosk 5 server: text whose words alone show what it covers, or pieces of it."""

    ending = '{"eof": 1}'
    opening: str | None = json.dumps({"config": {"sample_rate": RATE, "wait_null_answers": False}})

    def __init__(self, options: DialectOptions) -> None:
        super().__init__(options)
        self.path = f"/ws{self.query}"

    def parse(self, message: str) -> Answer:
        received = json.loads(message)
        if received["error"]:
            raise ConnectionError(received["error"])
        data, last = received["data"], received["last_message"]
        if isinstance(data, str):
            return Answer(None, data, last=last)
        self.utterance += 1
        ends = [word["end"] for word in data["result"]]
        return Answer(ends[-1] if ends else None, data["text"], self.utterance, last)


class Classic(_Base):
    """The vosk-server: the n-th answer covers the n-th frame."""

    ending = '{"eof": 1}'
    opening: str | None = json.dumps({"config": {"sample_rate": RATE}})

    def __init__(self, options: DialectOptions) -> None:
        super().__init__(options)
        self.path = f"/vosk{self.query}"

    def parse(self, message: str) -> Answer:
        received = json.loads(message)
        if "error" in received:
            raise ConnectionError(received["error"])
        self.answers += 1
        if self.answers > self.options.frames:
            return Answer(last=True)
        covers_s = self.answers * FRAME_S
        if "partial" in received:
            return Answer(covers_s, received["partial"], self.utterance)
        answer = Answer(covers_s, received.get("text"), self.utterance)
        self.utterance += 1
        return answer


class SherpaOnnx(_Base):
    """sherpa-onnx's streaming servers: the n-th answer is that to the n-th chunk of the model."""

    path = "/"
    ending = "Done"
    floats = True

    def parse(self, message: str) -> Answer:
        if message == "Done!":
            return Answer(last=True)
        received = json.loads(message)
        chunk_s = self.options.window_s + self.answers * self.options.shift_s
        self.answers += 1
        # A piece that only begins a word adds a space and no letter: it is no text yet.
        return Answer(chunk_s, received["text"].strip(), received["segment"])


DIALECTS: dict[str, Callable[[DialectOptions], Dialect]] = {
    "native": Native,
    "v1": V1,
    "sherpa5": Sherpa5,
    "classic": Classic,
    "sherpa-onnx": SherpaOnnx,
}
