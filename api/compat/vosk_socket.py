"""The common part of the sockets of two Vosk servers: configuration, audio, end, and words."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.live.connection import Frame
from api.live.conversation import Opening, code_of
from api.live.registry import LiveStreams
from configs.catalogue import ModelEntry
from speech.audio import SAMPLE_RATE
from speech.errors import InvalidRequest, SpeechError
from speech.live.endpointing import EndpointOptions
from speech.live.events import Event
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
_BINARY_END = re.compile(rb'\s{0,9}\{\s{0,9}"eof"\s{0,9}:\s{0,9}\w{1,9}\s{0,9}\}\s{0,9}')
"""The end in a binary frame, as some clients send it."""


def _phrases(given: object) -> object:
    """The list that a text may hold as JSON; any other text is one phrase."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError:
        return [given]


class Config(BaseModel):
    """What a client may set; unknown keys are ignored, as both servers do."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    sample_rate: float = Field(SAMPLE_RATE, ge=8000, le=48_000)
    model: str | None = None
    wait_null_answers: bool = True
    words: bool = True
    max_alternatives: int = Field(0, ge=0, le=10)
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

    def __init__(self, live: LiveStreams, model: str | None) -> None:
        self._live = live
        self._model = model
        self.config = Config()
        self.ended = False
        self.transcript = Transcript()

    def greeting(self) -> Sequence[str]:
        return ()

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        """The stream begins with the audio, or its end: no configuration is needed."""
        if _is_end(frame) or isinstance(frame, bytes):
            return Opening(self._open(), frame=frame)
        return self._configure(frame)

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        if _is_end(frame):
            self.ended = True
            session.end()
        elif isinstance(frame, bytes):
            session.offer(frame)
        else:
            before = self.config.sample_rate
            answer = self._configure(frame)
            if before != self.config.sample_rate:
                session.replace_decoder(self._decoder())
            return answer
        return []

    def _configure(self, frame: str) -> Sequence[str]:
        """A text that is not the end: settings that it has change, the others stay."""
        if frame and not _is_config(frame):
            return []
        try:
            self.config = _config(frame, self.config)
        except InvalidRequest as error:
            return [self.complaint(error.message)]
        return []

    def complaint(self, message: str) -> str:
        """The answer to a text that cannot be read; the stream continues."""
        return to_json({"error": message})

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        return [to_json({"error": error.message})]

    def close_code(self, code: str) -> int:
        return code_of(code)

    def _open(self) -> LiveSession:
        name = self.config.model or self._model
        entry = self._live.recogniser(name, self.default_model())
        options = SessionOptions(
            self.mode(entry),
            endpointing=EndpointOptions(max_utterance_s=MAX_UTTERANCE_S),
            transcribe=TranscribeOptions(hotwords=self._hotwords()),
            progress_s=0.0,
        )
        return self._live.open(options, self._decoder())

    def _decoder(self) -> StreamDecoder:
        return stream_decoder("pcm_s16le", round(self.config.sample_rate))

    def _hotwords(self) -> str | None:
        phrases = [phrase for phrase in self.config.phrase_list or () if phrase != "[unk]"]
        return ", ".join(phrases)[:MAX_HOTWORDS] or None

    def mode(self, entry: ModelEntry) -> Mode:
        return FrameSynchronous(entry.id) if entry.streaming else Pieces(entry.id)

    def default_model(self) -> str | None:
        return self._live.models.streaming or self._live.models.utterance


def _is_config(frame: str) -> bool:
    return "config" in frame


def _is_end(frame: Frame) -> bool:
    if isinstance(frame, bytes):
        return _BINARY_END.fullmatch(frame) is not None
    return "eof" in frame and not _is_config(frame)


def _config(frame: str, before: Config) -> Config:
    try:
        found = json.loads(frame)
        inner = found["config"]
        if not isinstance(inner, Mapping):
            raise TypeError("config is no object")
        return Config.model_validate({**before.model_dump(), **inner})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidRequest(f"Can`t parse message - {str(error)[:500]}") from None


def _word(word: Word) -> dict[str, Any]:
    """A word in Vosk's form: lower case, no punctuation; 1.0 where there is no probability."""
    text = word.text.strip().lower().strip('.,!?…:;"«»()-—')
    confidence = 1.0 if word.probability is None else round(word.probability, 6)
    return {
        "conf": confidence,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
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
