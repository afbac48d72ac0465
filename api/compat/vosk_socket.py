"""The common part of the sockets of two Vosk servers: configuration, audio, end, and words."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from api.live.connection import Frame
from api.live.conversation import Opening, code_of
from api.live.registry import LiveStreams
from configs.catalogue import ModelEntry
from speech.audio import SAMPLE_RATE
from speech.errors import SpeechError
from speech.live.endpointing import EndpointOptions
from speech.live.events import Event
from speech.live.pcm import HIGHEST_RATE_HZ, LOWEST_RATE_HZ
from speech.live.session import LiveSession
from speech.live.session_options import (
    FrameSynchronous,
    Mode,
    Pieces,
    SessionOptions,
)
from speech.live.stream_decoder import StreamDecoder, stream_decoder
from speech.ports import MAX_HOTWORDS, TranscribeOptions
from speech.transcript import Word

MAX_UTTERANCE_S = 15.0
"""The longest audio that a full model recognises at once; they fail above 18 s."""
MAX_FAULT_CHARS = 500
_BINARY_TEXT = re.compile(rb'\s{0,9}\{\s{0,9}"(eof|reset|config)"\s{0,9}:.{1,10000}\}\s{0,9}', re.S)
"""A text in a binary frame, as some clients send it."""


def _phrases(given: object) -> object:
    """The list that a text may hold as JSON; any other text is one phrase."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError:
        return [given]


def _clamped(lowest: int, highest: int) -> BeforeValidator:
    """A whole number, or a text that is one; one out of bounds becomes the nearest bound."""

    def clamp(given: object) -> int:
        number = float(given) if isinstance(given, str) else given
        unordered = isinstance(number, float) and math.isnan(number)
        if unordered or not isinstance(number, int | float):
            raise ValueError("it is no number")
        return round(min(max(number, lowest), highest))

    return BeforeValidator(clamp)


def _flag(given: object) -> object:
    """Any number but 0 is true, as for vosk-server."""
    return given != 0 if isinstance(given, int | float) else given


Flag = Annotated[bool, BeforeValidator(_flag)]


class Config(BaseModel):
    """What a client may set; unknown keys are ignored, as both servers do."""

    model_config = ConfigDict(frozen=True)

    sample_rate: Annotated[int, _clamped(LOWEST_RATE_HZ, HIGHEST_RATE_HZ)] = SAMPLE_RATE
    model: str | None = None
    wait_null_answers: Flag = True
    words: Flag = True
    max_alternatives: Annotated[int, _clamped(0, 10)] = 0
    phrase_list: Annotated[list[str] | None, BeforeValidator(_phrases)] = None


class Transcript:
    """The texts of the final utterances, and of the running one.

    An utterance may have partials before the one before it is final.
    """

    def __init__(self) -> None:
        self.finals: list[str] = []
        self._partials: dict[int, str] = {}

    def add(self, event: Event) -> None:
        """A partial or a final."""
        text = text_of(vosk_words(event.words))
        if event.kind == "partial":
            self._partials[event.utterance] = text
        else:
            self._partials.pop(event.utterance, None)
            self.finals.append(text)

    @property
    def partial(self) -> str:
        """The text of the utterance after the last final one."""
        return self._partials.get(len(self.finals), "")


class VoskSocket:
    """The common part of both sockets: the configuration, the audio, the end."""

    resumable = False
    may_start_late = True
    language: str | None = None
    """Of the audio, where the client names one."""

    def __init__(
        self, live: LiveStreams, model: str | None = None, config: Config | None = None
    ) -> None:
        self._live = live
        self._model = model
        self.config = config or Config()
        self.ended = False
        self.transcript = Transcript()

    def greeting(self) -> Sequence[str]:
        return ()

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        """The stream begins with the audio, or its end: no configuration is needed."""
        frame = _text_or_audio(frame)
        if isinstance(frame, bytes) or _is_end(frame):
            return Opening(self._open(), frame=frame)
        return self.read_text(frame, None)

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        frame = _text_or_audio(frame)
        if isinstance(frame, bytes):
            self.take_audio(frame, session)
        elif _is_end(frame):
            self.ended = True
            session.end()
        else:
            return self.read_text(frame, session)
        return []

    def take_audio(self, frame: bytes, session: LiveSession) -> None:
        """Feed one frame into the session."""
        session.offer(frame)

    def read_text(self, frame: str, session: LiveSession | None) -> Sequence[str]:
        """The answer to a text that is not the end; ``session`` where the stream has begun."""
        return self._configure(frame, session) if is_config(frame) else []

    def _configure(self, frame: str, session: LiveSession | None) -> Sequence[str]:
        """The settings that a text has change, the others stay; what cannot be read is answered."""
        before = self.config.sample_rate
        self.config, fault = changed(self.config, frame)
        if session is not None and before != self.config.sample_rate:
            session.replace_decoder(self._decoder())
        return [self.complaint(fault)] if fault else []

    def complaint(self, fault: str) -> str:
        """The answer to a text that cannot be read; the stream continues."""
        return to_json({"error": f"Can`t parse message - {fault}"})

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        return [to_json({"error": error.message})]

    def close_code(self, code: str) -> int:
        return code_of(code)

    def _open(self) -> LiveSession:
        entry = self.recogniser(self.config.model or self._model)
        # A model that is named may know other languages.
        language = self.language if self._live.knows(entry.id, self.language) else None
        options = SessionOptions(
            self.mode(entry),
            endpointing=EndpointOptions(max_utterance_s=MAX_UTTERANCE_S),
            transcribe=TranscribeOptions(language=language, hotwords=self._hotwords()),
            progress_s=0.0,
        )
        return self._live.open(options, self._decoder())

    def _decoder(self) -> StreamDecoder:
        return stream_decoder("pcm_s16le", self.config.sample_rate)

    def _hotwords(self) -> str | None:
        phrases = [phrase for phrase in self.config.phrase_list or () if phrase != "[unk]"]
        return ", ".join(phrases)[:MAX_HOTWORDS] or None

    def mode(self, entry: ModelEntry) -> Mode:
        return FrameSynchronous(entry.id) if entry.streaming else Pieces(entry.id)

    def recogniser(self, name: str | None) -> ModelEntry:
        """The model of a name, or the default one."""
        models = self._live.models
        return self._live.recogniser(name, models.streaming or models.utterance)


def _text_or_audio(frame: Frame) -> Frame:
    if isinstance(frame, bytes) and _BINARY_TEXT.fullmatch(frame):
        return frame.decode(errors="replace")
    return frame


def is_config(frame: str) -> bool:
    """Whether a text sets something; an empty one is taken for a configuration without JSON."""
    return "config" in frame or not frame


def _is_end(frame: str) -> bool:
    return "eof" in frame and not is_config(frame)


def changed(before: Config, frame: str) -> tuple[Config, str]:
    """The settings after a text, and what of it cannot be read."""
    try:
        given = json.loads(frame)["config"]
        if not isinstance(given, Mapping):
            raise TypeError("config is no object")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return before, str(error)[:MAX_FAULT_CHARS]
    config, faults = before, []
    for name in Config.model_fields:
        if given.get(name) is None:
            continue
        try:
            read = Config.model_validate({name: given[name]})
        except ValidationError as error:
            faults.append(f"{name}: {error.errors()[0]['msg']}")
        except RecursionError:
            faults.append(f"{name}: it is nested too deep")
        else:
            config = config.model_copy(update={name: getattr(read, name)})
    return config, "; ".join(faults)[:MAX_FAULT_CHARS]


def _word(word: Word) -> dict[str, Any]:
    """A word in Vosk's form: lower case, no punctuation; 1.0 where there is no probability."""
    text = word.text.strip().lower().strip('.,!?…:;"«»()-—')
    confidence = 1.0 if word.probability is None else round(word.probability, 6)
    return {
        "conf": confidence,
        "start": word.start,
        "end": word.end,
        "word": text,
    }


def vosk_words(words: Sequence[Word]) -> list[dict[str, Any]]:
    """The words in Vosk's form, without those that are only punctuation."""
    return [word for word in map(_word, words) if word["word"]]


def text_of(words: Sequence[Mapping[str, Any]]) -> str:
    """The text of words in Vosk's form."""
    return " ".join(str(word["word"]) for word in words)


def to_json(body: Mapping[str, Any]) -> str:
    """The text frame of a message."""
    return json.dumps(body, ensure_ascii=False)
