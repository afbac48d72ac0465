"""The sockets of two Vosk servers: ``WS /ws`` of the sherpa-onnx one, and the classic ``WS /vosk``.

Both take ``{"config": …}``, PCM16 of any frame size, and ``{"eof": 1}``. The answers differ, and
are described at :class:`SherpaSocket` and :class:`ClassicSocket`.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.websockets import WebSocket

from api.errors import responses
from api.live.connection import Frame
from api.live.conversation import Opening, code_of
from api.live.registry import LiveStreams
from api.live.websocket import serve
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
    TwoPass,
    WholeUtterances,
)
from speech.live.stream_decoder import stream_decoder
from speech.ports import MAX_HOTWORDS, TranscribeOptions
from speech.transcript import Word

MAX_UTTERANCE_S = 15.0
"""The longest audio that a full model recognises at once; they fail above 18 s."""
ADVICE = "Прочти инструкцию в Schemas - 'WebSocketModel'"


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


class WebSocketModel(BaseModel):
    """The protocol of ``WS /ws``; this schema is here for ``/docs``.

    Send ``{"config": {"sample_rate": 16000, "wait_null_answers": true}}`` as text, then PCM s16le
    mono as binary frames of any size, then ``{"eof": 1}`` as text. Every answer is a JSON text of
    the shape below; after the one with ``last_message: true`` the server closes.
    """

    silence: bool
    data: dict[str, Any] | str
    error: str | None
    last_message: bool


class _Transcript:
    """The texts of the final utterances, and of the running one.

    An utterance may have partials before the one before it is final.
    """

    def __init__(self) -> None:
        self.finals: list[str] = []
        self._partials: dict[int, str] = {}

    def add(self, event: Event) -> None:
        """A partial or a final."""
        text = _text(_words(event.words))
        if event.kind == "partial":
            self._partials[event.utterance] = text
        else:
            self._partials.pop(event.utterance, None)
            self.finals.append(text)

    @property
    def partial(self) -> str:
        """The text of the utterance after the last final one."""
        return self._partials.get(len(self.finals), "")


class _VoskSocket:
    """The common part of both sockets: the configuration, the audio, the end."""

    resumable = False

    def __init__(self, live: LiveStreams, model: str | None) -> None:
        self._live = live
        self._model = model
        self.config = Config()
        self.ended = False
        self.transcript = _Transcript()

    def greeting(self) -> Sequence[str]:
        return ()

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        """The stream begins with the audio, or its end: no configuration is needed."""
        if isinstance(frame, bytes) or _is_end(frame):
            return Opening(self._open(), frame=frame)
        return self._configure(frame)

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        if isinstance(frame, bytes):
            session.offer(frame)
        elif _is_end(frame):
            self.ended = True
            session.end()
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
        return _json({"error": message})

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        return [_json({"error": error.message})]

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

    def _decoder(self) -> Any:
        return stream_decoder("pcm_s16le", round(self.config.sample_rate))

    def _hotwords(self) -> str | None:
        phrases = [phrase for phrase in self.config.phrase_list or () if phrase != "[unk]"]
        return ", ".join(phrases)[:MAX_HOTWORDS] or None

    def mode(self, entry: ModelEntry) -> Mode:
        return FrameSynchronous(entry.id) if entry.streaming else Pieces(entry.id)

    def default_model(self) -> str | None:
        return self._live.models.streaming or self._live.models.utterance


class SherpaSocket(_VoskSocket):
    """Server B. A full model gives one answer per piece of at most 15 s, cut in pauses; a streaming
    model sends the text so far whenever it grows, as a string.

    Exactly one message has ``last_message: true``, after the end; then the server closes.
    """

    def __init__(self, live: LiveStreams, model: str | None) -> None:
        super().__init__(live, model)
        self._streaming = False
        self._sent = ""
        self._held: Event | None = None
        self._failed = False

    def default_model(self) -> str | None:
        return self._live.models.utterance or self._live.models.streaming

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        opening = super().open(frame)
        if isinstance(opening, Opening):
            self._streaming = isinstance(opening.session.options.mode, FrameSynchronous)
        return opening

    def complaint(self, message: str) -> str:
        return _envelope(error=message)

    def render(self, event: Event) -> Sequence[str]:
        if event.kind == "error":
            self._failed = True
            held, self._held = self._held, None
            return [*(self._piece(held) if held else ()), _envelope(error=event.text, last=True)]
        if self._failed:
            return []
        return self._accumulate(event) if self._streaming else self._piecewise(event)

    def _piecewise(self, event: Event) -> Sequence[str]:
        """One answer per piece; after the end one is held back, as it may be the last."""
        if event.kind == "final":
            if not self.ended:
                return self._piece(event)
            held, self._held = self._held, event
            return self._piece(held) if held else []
        if event.kind == "done" and self.ended:
            held, self._held = self._held, None
            if held and held.text:
                return self._piece(held, last=True)
            return [_envelope(silence=True, last=True)]
        return []

    def _piece(self, event: Event, last: bool = False) -> Sequence[str]:
        if event.text:
            words = _words(event.words)
            return [_envelope(data={"result": words, "text": _text(words)}, last=last)]
        if self.config.wait_null_answers:
            return [_envelope(silence=True, last=last)]
        return []

    def _accumulate(self, event: Event) -> Sequence[str]:
        if event.kind in ("partial", "final"):
            self.transcript.add(event)
            so_far = " ".join(
                text for text in (*self.transcript.finals, self.transcript.partial) if text
            )
            if so_far != self._sent:
                self._sent = so_far
                return [_envelope(data=so_far)]
        elif event.kind == "progress" and not self._sent and self.config.wait_null_answers:
            return [_envelope(silence=True)]
        elif event.kind == "done" and self.ended:
            return [_envelope(silence=not self._sent, data=self._sent, last=True)]
        return []

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        return [_envelope(error=error.message, last=True)]


class ClassicSocket(_VoskSocket):
    """The vosk-server: one answer to each frame, a result where an utterance ended in it, else the
    partial; the rest of the text after the end, then the server closes.
    """

    def __init__(self, live: LiveStreams, model: str | None) -> None:
        super().__init__(live, model)
        self._session: LiveSession | None = None
        self._answered = 0
        self._results: deque[Event] = deque()

    def mode(self, entry: ModelEntry) -> Mode:
        """Utterances are endpointed also for models that recognise whole utterances."""
        if entry.streaming:
            return FrameSynchronous(entry.id)
        partial_model = self._live.models.streaming
        if partial_model is None:
            return WholeUtterances(entry.id, partials=False)
        return TwoPass(entry.id, partial_model)

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        opening = super().open(frame)
        if isinstance(opening, Opening):
            self._session = opening.session
        return opening

    def render(self, event: Event) -> Sequence[str]:
        match event.kind:
            case "partial":
                self.transcript.add(event)
            case "final":
                self.transcript.add(event)
                if event.text:
                    self._results.append(event)
            case "progress":
                return self._answers()
            case "error":
                return [_json({"error": event.text})]
            case "done":
                rest = [word for result in self._results for word in result.words]
                self._results.clear()
                return [_json(self._result(rest))]
        return []

    def _answers(self) -> list[str]:
        assert self._session is not None
        answers = []
        while self._answered < self._session.processed_frames:
            self._answered += 1
            if self._results:
                answers.append(_json(self._result(self._results.popleft().words)))
            else:
                answers.append(_json({"partial": self.transcript.partial}))
        return answers

    def _result(self, words: Sequence[Word]) -> dict[str, Any]:
        result = _words(words)
        text = _text(result)
        body = {"result": result, "text": text} if self.config.words and result else {"text": text}
        if not self.config.max_alternatives:
            return body
        values = [word["conf"] for word in result]
        confidence = sum(values) / len(values) if values else 1.0
        return {"alternatives": [{"confidence": confidence, **body}]}


def router(live: LiveStreams) -> APIRouter:
    """The sockets, and the small HTTP routes of server B."""
    routes = APIRouter(tags=["vosk"])

    @routes.websocket("/ws")
    async def sherpa(websocket: WebSocket, model: Annotated[str | None, Query()] = None) -> None:
        await serve(websocket, live, SherpaSocket(live, model))

    @routes.websocket("/vosk")
    async def classic(websocket: WebSocket, model: Annotated[str | None, Query()] = None) -> None:
        await serve(websocket, live, ClassicSocket(live, model))

    @routes.post(
        "/ws",
        summary="The protocol of WS /ws, see the schema WebSocketModel",
        responses=responses(422),
        openapi_extra={
            "requestBody": {
                "content": {"application/json": {"schema": WebSocketModel.model_json_schema()}}
            }
        },
    )
    async def describe(body: Annotated[dict[str, Any], Body()]) -> str:
        return ADVICE

    @routes.get("/is_alive", summary="Liveness in the form of server B")
    async def is_alive() -> dict[str, Any]:
        return {"error": False, "error_description": None, "data": "is running"}

    @routes.get("/", include_in_schema=False)
    async def root() -> dict[str, Any]:
        return {
            "error": True,
            "data": "No_service_selected",
            "comment": "try_addr: http://<host>:<port>/docs",
        }

    return routes


def _is_config(frame: str) -> bool:
    return "config" in frame


def _is_end(frame: str) -> bool:
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


def _words(words: Sequence[Word]) -> list[dict[str, Any]]:
    return [word for word in map(_word, words) if word["word"]]


def _text(words: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(str(word["word"]) for word in words)


def _envelope(
    data: Any = "", *, silence: bool = False, error: str | None = None, last: bool = False
) -> str:
    return _json({"silence": silence, "data": data, "error": error, "last_message": last})


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False)
