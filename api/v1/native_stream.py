"""The native stream of ``WS /v1/ws``: numbered events, resumable."""

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from api.live.connection import Frame
from api.live.conversation import Opening, code_of
from api.live.registry import LiveStreams
from api.v1.native_start import Resume, Start
from api.v1.requests import MAX_ERROR_CHARS
from speech.errors import InvalidRequest, Overloaded, SpeechError
from speech.live.events import Event
from speech.live.session import LiveSession
from speech.live.session_options import (
    FrameSynchronous,
    Mode,
    ResumeState,
    SessionOptions,
    TwoPass,
    WholeUtterances,
)
from speech.live.stream_decoder import stream_decoder
from speech.ports import TranscribeOptions
from speech.transcript import Word


class NativeStream:
    """See :class:`api.live.conversation.Dialect`."""

    resumable = True
    may_start_late = False

    def __init__(self, live: LiveStreams, owner: str = "", max_of_owner: int | None = None) -> None:
        self._live = live
        self._owner = owner
        self._max_of_owner = max_of_owner
        self.ended = False

    def greeting(self) -> Sequence[str]:
        return ()

    def open(self, frame: Frame) -> Opening:
        try:
            start = Start.model_validate_json(frame)
        except ValidationError as error:
            raise InvalidRequest(f"start: {_short(error)}") from None
        resume = start.resume
        running = self._live.sessions.find(resume.session, self._owner) if resume else None
        decoder = stream_decoder(start.encoding, start.sample_rate, start.channels)
        if resume and running and _is_current(running, resume):
            if running.options.pcm != start.pcm:
                raise InvalidRequest("resume: encoding, sample_rate and channels must stay")
            # Events that the client has not received follow; its audio continues where ours ends.
            running.replace_decoder(decoder)
            return Opening(running, [self._ready(running, resume.seq, resumed=True)], resume.seq)
        state = resume.state() if resume else ResumeState()
        session = self._live.open(
            self._options(start),
            decoder,
            session_id=resume.session if resume else None,
            owner=self._owner,
            max_of_owner=self._max_of_owner,
            resume_from=state,
        )
        ready = self._ready(session, state.seq, resumed=False)
        return Opening(session, [ready], state.seq)

    def _options(self, start: Start) -> SessionOptions:
        models = self._live.models
        entry = self._live.recogniser(start.model, models.streaming or models.utterance)
        mode: Mode = WholeUtterances(entry.id, start.partials)
        if entry.streaming:
            mode = FrameSynchronous(entry.id, start.partials)
        if start.partial_model is not None:
            fast = self._live.recogniser(start.partial_model, None)
            if not fast.streaming:
                raise InvalidRequest(f"partial_model: '{fast.id}' is no streaming model")
            if entry.streaming:
                raise InvalidRequest(f"partial_model: '{entry.id}' makes its own partials")
            if start.partials:
                mode = TwoPass(entry.id, fast.id)
        return SessionOptions(
            mode,
            endpointing=start.endpointing.options(),
            transcribe=TranscribeOptions(
                language=start.language,
                hotwords=start.hotwords,
                initial_prompt=start.initial_prompt,
            ),
            emotion_model=self._live.emotion_model() if start.emotion else None,
            speakers=start.speaker,
            progress_s=1.0,
            pcm=start.pcm,
        )

    def _ready(self, session: LiveSession, seq: int, *, resumed: bool) -> str:
        warnings = self._live.warnings(session.options)
        return _json(
            type="ready",
            session=session.id,
            resumed=resumed,
            seq=seq,
            audio_from_s=session.audio_from_s,
            model=session.options.mode.model,
            partial_model=session.options.partial_model,
            window_s=self._live.settings.window_s,
            **({"warnings": warnings} if warnings else {}),
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
                body |= {"processed_s": event.end, "lag_s": event.lag_s}
            case "speech_start" | "speech_end":
                at = event.end if event.kind == "speech_start" else event.start
                body |= {"utterance": event.utterance, "at": at}
            case "done":
                if self._live.sessions.draining and not self.ended:
                    return []  # another replica continues the stream
            case "error":
                body |= {"code": event.code, "message": event.text}
            case "partial" | "final":
                body |= {
                    "utterance": event.utterance,
                    "start": event.start,
                    "end": event.end,
                    "text": event.text,
                    "words": [_word(word) for word in event.words],
                    "lag_s": event.lag_s,
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


def _is_current(session: LiveSession, resume: Resume) -> bool:
    """Whether a session is as far as its client, which else has continued elsewhere since."""
    return session.last_seq >= resume.seq and session.audio_from_s >= resume.from_s - 0.001


def _word(word: Word) -> dict[str, Any]:
    return {
        "word": word.text.strip(),
        "start": word.start,
        "end": word.end,
        "probability": word.probability,
    }


def _short(error: ValidationError) -> str:
    return str(error)[:MAX_ERROR_CHARS]


def _json(**body: Any) -> str:
    return json.dumps(body, ensure_ascii=False)
