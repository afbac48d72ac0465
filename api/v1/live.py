"""``WS /v1/ws``: the v1 stream, and the native form for clients that ask for it.

The first text frame decides: ``{"type": "start", …}`` begins the native form, anything else is a
v1 ``ProcessRequest``.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocket

from api.live.conversation import Frame, Opening, code_of, converse
from api.live.registry import LiveStreams
from api.v1.requests import MAX_ERROR_CHARS, ProcessRequest
from speech.errors import InvalidRequest, Overloaded, SpeechError
from speech.live.endpointing import EndpointOptions
from speech.live.events import Event
from speech.live.intake import intake
from speech.live.session import Earlier, LiveSession, PcmFormat, SessionOptions
from speech.live.speakers import MAX_SPEAKERS
from speech.ports import MAX_HOTWORDS, TranscribeOptions
from speech.transcript import Word

SAMPLE_RATE_V1 = 16_000
END_STREAM = "END_STREAM"
REALTIME_STT = EndpointOptions(
    threshold=0.95,
    end_threshold=0.95,
    silence_s=1.5,
    min_utterance_s=2.0,
    pre_roll_s=1.0,
    webrtc_mode=3,
)
"""What clients of RealtimeSTT servers are used to."""


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Endpointing(_Frame):
    """When an utterance begins and ends; what is absent is as the profile has it.

    The last four are RealtimeSTT's names: ``silero_sensitivity`` is one minus the threshold.
    """

    profile: Literal["default", "realtime_stt"] = "default"
    threshold: float | None = None
    end_threshold: float | None = None
    min_speech_s: float | None = None
    silence_s: float | None = None
    min_utterance_s: float | None = None
    max_utterance_s: float | None = None
    pre_roll_s: float | None = None
    tail_s: float | None = None
    webrtc_mode: int | None = None
    silero_sensitivity: Annotated[float, Field(gt=0, lt=1)] | None = None
    webrtc_sensitivity: int | None = None
    post_speech_silence_duration: float | None = None
    min_length_of_recording: float | None = None

    def options(self) -> EndpointOptions:
        """The same for the session. Raises InvalidRequest."""
        base = REALTIME_STT if self.profile == "realtime_stt" else EndpointOptions()
        given = self.model_dump(exclude={"profile"}, exclude_none=True)
        for name, ours in (
            ("webrtc_sensitivity", "webrtc_mode"),
            ("post_speech_silence_duration", "silence_s"),
            ("min_length_of_recording", "min_utterance_s"),
        ):
            if name in given:
                given[ours] = given.pop(name)
        if "silero_sensitivity" in given:
            given["threshold"] = given["end_threshold"] = 1 - given.pop("silero_sensitivity")
        if "threshold" in given and "end_threshold" not in given:
            given["end_threshold"] = min(base.end_threshold, given["threshold"])
        return replace(base, **given)


class Resume(_Frame):
    """Where a client was when its socket dropped."""

    session: str = Field(pattern=r"^[0-9a-zA-Z_-]{1,64}$")
    seq: int = Field(ge=0, description="The last event received.")
    from_s: float = Field(ge=0, le=10**6, description="End of the last final received, seconds.")
    utterances: int = Field(0, ge=0, description="How many finals were received.")
    voices: Annotated[dict[str, Base64Bytes], Field(max_length=MAX_SPEAKERS)] = {}

    def earlier(self) -> Earlier:
        """The same for the session."""
        return Earlier(self.from_s, self.seq, self.utterances, self.voices)


class Start(_Frame):
    """First frame of the native form."""

    type: Literal["start"]
    model: str | None = Field(None, description="Makes the finals; a streaming model by default.")
    partial_model: str | None = Field(None, description="A streaming model for the partials.")
    partials: bool = True
    language: str | None = Field(None, max_length=32)
    encoding: str = "pcm_s16le"
    sample_rate: int = Field(16_000, ge=8000, le=48_000)
    channels: int = Field(1, ge=1, le=8)
    endpointing: Endpointing = Endpointing()
    emotion: bool = False
    speaker: bool = False
    hotwords: str | None = Field(None, max_length=MAX_HOTWORDS)
    initial_prompt: str | None = Field(None, max_length=10_000)
    resume: Resume | None = None


class Live:
    """One socket of ``/v1/ws``: it becomes one of the two forms with its first frame."""

    resumable = False

    def __init__(self, live: LiveStreams) -> None:
        self._live = live
        self._form: _Native | _V1 = _V1(live)

    @property
    def ended(self) -> bool:
        """See :class:`api.live.conversation.Dialect`."""
        return self._form.ended

    def greeting(self) -> Sequence[str]:
        """See :class:`api.live.conversation.Dialect`."""
        return ()

    def open(self, frame: Frame) -> Opening:
        """See :class:`api.live.conversation.Dialect`."""
        if isinstance(frame, str) and _says_start(frame):
            self._form = _Native(self._live)
            self.resumable = True
        return self._form.open(frame)

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        """See :class:`api.live.conversation.Dialect`."""
        return self._form.receive(frame, session)

    def render(self, event: Event) -> Sequence[str]:
        """See :class:`api.live.conversation.Dialect`."""
        return self._form.render(event)

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        """See :class:`api.live.conversation.Dialect`."""
        return self._form.render_error(error, begun)

    def close_code(self, code: str) -> int:
        """See :class:`api.live.conversation.Dialect`."""
        return self._form.close_code(code)


class _Native:
    def __init__(self, live: LiveStreams) -> None:
        self._live = live
        self.ended = False

    def open(self, frame: Frame) -> Opening:
        try:
            start = Start.model_validate_json(frame)
        except ValidationError as error:
            raise InvalidRequest(f"start: {_short(error)}") from None
        resume = start.resume
        running = self._live.sessions.find(resume.session) if resume else None
        heard_by = intake(start.encoding, start.sample_rate, start.channels)
        if resume and running and _knows_all(running, resume):
            if running.options.pcm != _pcm(start):
                raise InvalidRequest("resume: encoding, sample_rate and channels must stay")
            # What the client has not been told yet follows; its audio goes on where ours ends.
            running.change_intake(heard_by)
            return Opening(running, [self._ready(running, resume.seq, resumed=True)], resume.seq)
        earlier = resume.earlier() if resume else Earlier()
        session = self._live.open(
            self._options(start),
            heard_by,
            session_id=resume.session if resume else None,
            earlier=earlier,
        )
        ready = self._ready(session, earlier.seq, resumed=False)
        return Opening(session, [ready], earlier.seq)

    def _options(self, start: Start) -> SessionOptions:
        models = self._live.models
        entry = self._live.recogniser(start.model, models.streaming or models.utterance)
        partial_model: str | None = None
        if start.partial_model is not None:
            fast = self._live.recogniser(start.partial_model, None)
            if not fast.streaming:
                raise InvalidRequest(f"partial_model: '{fast.id}' is no streaming model")
            if entry.streaming:
                raise InvalidRequest(f"partial_model: '{entry.id}' makes its own partials")
            partial_model = fast.id
        language = None if start.language in (None, "auto") else start.language.lower()
        return SessionOptions(
            model=entry.id,
            streaming=entry.streaming,
            partial_model=partial_model,
            partials=start.partials,
            endpointing=start.endpointing.options(),
            transcribe=TranscribeOptions(
                language=language, hotwords=start.hotwords, initial_prompt=start.initial_prompt
            ),
            emotion_model=self._live.emotion_model() if start.emotion else None,
            speakers=start.speaker,
            progress_s=1.0,
            pcm=_pcm(start),
        )

    def _ready(self, session: LiveSession, seq: int, *, resumed: bool) -> str:
        return _json(
            type="ready",
            session=session.id,
            resumed=resumed,
            seq=seq,
            audio_from_s=session.audio_from_s,
            model=session.options.model,
            partial_model=session.options.partial_model,
            window_s=self._live.settings.window_s,
        )

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        if isinstance(frame, bytes):
            session.offer(frame)
            return []
        try:
            command = json.loads(frame).get("type")
        except (ValueError, AttributeError, RecursionError):
            raise InvalidRequest("a text frame must be a JSON object with a type") from None
        if command == "finalize":
            session.finalize()
        elif command == "end":
            self.ended = True
            session.end()
        elif command != "keepalive":
            raise InvalidRequest(f"unknown type of frame: {str(command)[:50]!r}")
        return []

    def render(self, event: Event) -> Sequence[str]:
        body: dict[str, Any] = {"type": event.kind, "seq": event.seq}
        match event.kind:
            case "progress":
                body |= {"processed_s": _seconds(event.end), "lag_s": _seconds(event.lag_s)}
            case "speech_start" | "speech_end":
                at = event.end if event.kind == "speech_start" else event.start
                body |= {"utterance": event.utterance, "at": _seconds(at)}
            case "done":
                if self._live.sessions.draining and not self.ended:
                    return []  # another replica goes on with the stream
            case "error":
                body |= {"code": event.code, "message": event.text}
            case "partial" | "final":
                body |= {
                    "utterance": event.utterance,
                    "start": _seconds(event.start),
                    "end": _seconds(event.end),
                    "text": event.text,
                    "words": [_word(word) for word in event.words],
                    "lag_s": _seconds(event.lag_s),
                }
                if event.emotion is not None:
                    body["emotion"] = dict(event.emotion)
                if event.speaker is not None:
                    body["speaker"] = event.speaker
                    body["voice"] = b64encode(event.voice).decode()
        return [_json(**body)]

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        later = {"retry_after_s": error.retry_after_s} if isinstance(error, Overloaded) else {}
        return [_json(type="error", code=error.code, message=error.message, **later)]

    def close_code(self, code: str) -> int:
        return code_of(code)


class _V1:
    """Section D of the protocols: closes with 1000 whatever happened, an error frame tells it."""

    def __init__(self, live: LiveStreams) -> None:
        self._live = live
        self._word_timestamps = True
        self.ended = False

    def open(self, frame: Frame) -> Opening:
        if isinstance(frame, bytes) or not _is_json(frame):
            raise InvalidRequest("First message must be a valid JSON string.")
        try:
            request = ProcessRequest.model_validate_json(frame)
        except ValidationError as error:
            raise InvalidRequest(f"Invalid settings in first message: {_short(error)}") from None
        tra = request.settings.tra
        if tra is None:
            raise InvalidRequest("Invalid settings in first message: settings.tra is missing")
        self._word_timestamps = tra.word_timestamps
        try:
            entry = self._live.recogniser(tra.model, self._live.models.general)
            emotion = "emotion" in request.settings.tasks
            options = SessionOptions(
                model=entry.id,
                streaming=entry.streaming,
                partials=False,
                transcribe=tra.options(),
                emotion_model=self._live.emotion_model() if emotion else None,
            )
            session = self._live.open(options, intake("pcm_s16le", SAMPLE_RATE_V1))
        except SpeechError as error:
            raise type(error)(f"Failed to initialize streaming: {error.message}") from None
        return Opening(session)

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        if isinstance(frame, bytes) and frame:
            session.offer(frame)
        elif isinstance(frame, bytes) or frame.strip().upper() == END_STREAM:
            self.ended = True
            session.end()
        return []

    def render(self, event: Event) -> Sequence[str]:
        if event.kind == "error":
            return [_json(error=f"Streaming error: {event.text}")]
        if event.kind != "final" or not event.text:
            return []
        words = event.words if self._word_timestamps else ()
        return [
            _json(
                start=event.start,
                end=event.end,
                text=event.text,
                words=[
                    {"start": w.start, "end": w.end, "word": w.text, "confidence": w.probability}
                    for w in words
                ],
                emotional=dict(event.emotion) if event.emotion is not None else None,
            )
        ]

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        return [_json(error=f"Streaming error: {error.message}" if begun else error.message)]

    def close_code(self, code: str) -> int:
        return 1000


def router(live: LiveStreams) -> APIRouter:
    """The route of both forms."""
    routes = APIRouter()

    @routes.websocket("/v1/ws")
    async def stream(websocket: WebSocket) -> None:
        await converse(websocket, live, Live(live))

    return routes


def _knows_all(session: LiveSession, resume: Resume) -> bool:
    """Whether a session is as far as its client; else the client has been on elsewhere since."""
    return session.last_seq >= resume.seq and session.audio_from_s >= resume.from_s - 0.001


def _pcm(start: Start) -> PcmFormat | None:
    sample_bytes = {"pcm_s16le": 2, "pcm_f32le": 4}.get(start.encoding)
    return PcmFormat(start.sample_rate, sample_bytes, start.channels) if sample_bytes else None


def _word(word: Word) -> dict[str, Any]:
    return {
        "word": word.text.strip(),
        "start": _seconds(word.start),
        "end": _seconds(word.end),
        "probability": word.probability,
    }


def _seconds(value: float) -> float:
    return round(value, 3)


def _says_start(frame: str) -> bool:
    try:
        return bool(json.loads(frame)["type"] == "start")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_json(frame: str) -> bool:
    try:
        json.loads(frame)
    except (ValueError, RecursionError):
        return False
    return True


def _short(error: ValidationError) -> str:
    return str(error)[:MAX_ERROR_CHARS]


def _json(**body: Any) -> str:
    return json.dumps(body, ensure_ascii=False)
