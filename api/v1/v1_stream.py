"""The v1 stream of ``WS /v1/ws``: a ``ProcessRequest``, PCM16 at 16 kHz, chunks of text."""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from api.live.connection import Frame
from api.live.conversation import Opening
from api.live.registry import LiveStreams
from api.v1.requests import MAX_ERROR_CHARS, ProcessRequest
from speech.errors import InvalidRequest, SpeechError
from speech.live.events import Event
from speech.live.session import LiveSession
from speech.live.session_options import FrameSynchronous, SessionOptions, WholeUtterances
from speech.live.stream_decoder import stream_decoder

SAMPLE_RATE_V1 = 16_000
END_STREAM = "END_STREAM"


class V1Stream:
    """See :class:`api.live.conversation.Dialect`.

    The socket is always closed with 1000; an error is a frame of its own.
    """

    resumable = False
    may_start_late = False

    def __init__(self, live: LiveStreams) -> None:
        self._live = live
        self._word_timestamps = True
        self.ended = False

    def greeting(self) -> Sequence[str]:
        return ()

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
            mode = FrameSynchronous if entry.streaming else WholeUtterances
            options = SessionOptions(
                mode(entry.id, partials=False),
                transcribe=tra.options(),
                emotion_model=self._live.emotion_model() if emotion else None,
            )
            session = self._live.open(options, stream_decoder("pcm_s16le", SAMPLE_RATE_V1))
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


def _is_json(frame: str) -> bool:
    try:
        json.loads(frame)
    except (ValueError, RecursionError):
        return False
    return True


def _short(error: ValidationError) -> str:
    return str(error)[:MAX_ERROR_CHARS]


def _json(**body: object) -> str:
    return json.dumps(body, ensure_ascii=False)
