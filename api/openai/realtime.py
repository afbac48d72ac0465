"""``WS /v1/realtime?intent=transcription``: OpenAI's realtime transcription sessions.

A client appends audio to a buffer; a turn of it becomes an item of the conversation when voice
activity detection or the client commits it. The transcript of an item is sent while it grows: a
delta holds only words that do not change any more.
"""

import binascii
import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from api.errors import family_problem
from api.live.connection import Frame
from api.live.conversation import Opening, code_of
from api.live.registry import LiveStreams
from api.openai.errors import error_object
from api.openai.realtime_settings import BetaSessionUpdate, SessionUpdate, Settings
from api.openai.requests import Aliases
from api.openai.responses import logprobs
from speech.audio import SAMPLE_RATE
from speech.errors import InvalidRequest, SpeechError, TooFarAhead
from speech.live.events import Event
from speech.live.session import LiveSession
from speech.live.session_options import SessionOptions
from speech.live.turn_tracker import MAX_TURN_S
from speech.live.turns import Delta, TurnAssembler, TurnTranscript
from speech.transcript import Word

MAX_MESSAGE_CHARS = 4 * 1024**2
"""Bound of one event of a client: a minute of PCM16 at 24 kHz. Parsing it blocks the event loop for
30 ms."""
MIN_COMMIT_SAMPLES = SAMPLE_RATE // 10
"""Least audio of a commit, OpenAI's bound of 100 ms."""
BETA = "openai-beta.realtime-v1"
NOT_SERVED = {
    "conversation.item.create",
    "conversation.item.delete",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "output_audio_buffer.clear",
    "response.cancel",
    "response.create",
}
"""Events of speech-to-speech sessions."""
_CODES = {"stream_too_long": "session_expired"}
"""OpenAI's names of codes that differ from ours."""
_VALUE_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
_Update = TypeVar("_Update", bound=BaseModel)
_TRANSCRIPTION = "conversation.item.input_audio_transcription"


class _RefusedError(Exception):
    """An event of the client that is rejected; the session continues."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        self.code = code
        self.message = message
        self.param = param


class Realtime:
    """One socket; see :class:`api.live.conversation.Dialect`.

    ``beta`` clients receive ``transcription_session.created`` and ``conversation.item.created``,
    the others ``session.created`` and ``conversation.item.added`` and ``.done``. ``update`` are
    the settings of the client secret.
    """

    resumable = False
    may_start_late = False
    ended = False

    def __init__(
        self,
        live: LiveStreams,
        aliases: Aliases,
        *,
        intent: str | None,
        model: str | None,
        beta: bool,
        update: SessionUpdate | None = None,
    ) -> None:
        self._live = live
        self._aliases = aliases
        self._intent = intent
        self._model = model
        self._beta = beta
        self._id = uuid.uuid4().hex
        self._settings = Settings().updated(update) if update else Settings()
        self._session: LiveSession | None = None
        self._turns = TurnAssembler()
        self._numbers = itertools.count(1)
        self._last_item: str | None = None
        self._uncommitted_bytes = 0
        """Appended since the last commit or clear of the client, in the format of now."""
        self._uncommitted_before = 0
        """The same in the formats before, in samples at SAMPLE_RATE."""

    # Events of the client

    def greeting(self) -> Sequence[str]:
        """The session with the settings of the query. Raises InvalidRequest."""
        if self._intent not in (None, "transcription"):
            raise InvalidRequest(
                "This service only transcribes: connect with intent=transcription."
            )
        # With an intent OpenAI's clients name their model of conversations, which is not meant.
        known = self._model in self._aliases or self._live.lists(self._model)
        if self._model and (known or self._intent is None):
            transcription = self._settings.transcription.model_copy(update={"model": self._model})
            self._settings = replace(self._settings, transcription=transcription)
        return [self._session_event("created")]

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        """The stream begins with the first audio."""
        answers = self._handle(frame)
        return answers if self._session is None else Opening(self._session, answers)

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        """See :class:`api.live.conversation.Dialect`."""
        return self._handle(frame)

    def _handle(self, frame: Frame) -> Sequence[str]:
        """The immediate answer. Raises Overloaded where the stream cannot begin."""
        event_id: str | None = None
        try:
            event = _read(frame)
            given = event.get("event_id")
            event_id = given if isinstance(given, str) else None
            return self._dispatch(event)
        except _RefusedError as error:
            kind = "invalid_request_error"
            body = {"type": kind, "code": error.code, "message": error.message}
            return [self._error(body | {"param": error.param}, event_id)]
        except TooFarAhead as error:  # not logged: a client may repeat it without end
            body = {"type": "server_error", "code": error.code, "message": error.message}
            return [self._error(body | {"param": None}, event_id)]
        except InvalidRequest as error:
            return [self._family_error(error.code, error.message, event_id)]

    def _dispatch(self, event: Mapping[str, Any]) -> Sequence[str]:
        match event.get("type"):
            case "input_audio_buffer.append":
                self._append(_audio(event))
            case "input_audio_buffer.commit":
                return self._commit()
            case "input_audio_buffer.clear":
                return self._clear()
            case "session.update":
                return self._update(_valid(SessionUpdate, event))
            case "transcription_session.update":
                self._beta = True
                return self._update(_valid(BetaSessionUpdate, event).today())
            case None:
                raise _RefusedError("missing_required_parameter", "An event has a type.", "type")
            case str(kind) if kind in NOT_SERVED:
                message = f"'{kind}' is for speech-to-speech, this session transcribes."
                raise _RefusedError("not_supported", message, "type")
            case kind:
                message = f"Unknown type of event: {str(kind)[:64]!r}."
                raise _RefusedError("unknown_event", message, "type")
        return []

    def _append(self, audio: bytes) -> None:
        manual = self._settings.turn_detection is None
        if manual and self._uncommitted(len(audio)) > round(MAX_TURN_S * SAMPLE_RATE):
            message = f"The buffer holds at most {MAX_TURN_S:g} seconds: commit or clear it."
            raise _RefusedError("input_audio_buffer_full", message, "audio")
        if self._session is None:
            options = self._options()
            self._session = self._live.open(options, self._settings.format.decoder())
        self._session.offer(audio)
        self._uncommitted_bytes += len(audio)

    def _uncommitted(self, more: int = 0) -> int:
        """Samples at SAMPLE_RATE since the last commit or clear, and of so many bytes more.

        They are counted in bytes of the format: the seconds of many small pieces do not add up.
        """
        pcm = self._settings.format.pcm
        samples = (self._uncommitted_bytes + more) // pcm.sample_bytes
        return self._uncommitted_before + samples * SAMPLE_RATE // pcm.sample_rate

    def _count_from(self, samples: int) -> None:
        self._uncommitted_before, self._uncommitted_bytes = samples, 0

    def _options(self) -> SessionOptions:
        return self._settings.options(self._live, self._aliases)

    def _commit(self) -> Sequence[str]:
        if self._session is None or self._uncommitted() < MIN_COMMIT_SAMPLES:
            message = (
                f"The buffer has {1000 * self._uncommitted() // SAMPLE_RATE} ms of audio, "
                f"a commit needs {1000 * MIN_COMMIT_SAMPLES // SAMPLE_RATE} ms."
            )
            raise _RefusedError("input_audio_buffer_commit_empty", message)
        self._session.commit()
        self._count_from(0)
        return []

    def _clear(self) -> Sequence[str]:
        self._count_from(0)
        if self._session is None:
            return [self._event("input_audio_buffer.cleared")]
        self._session.clear()
        return []

    def _update(self, update: SessionUpdate) -> Sequence[str]:
        before, settings = self._settings, self._settings.updated(update)
        options = settings.options(self._live, self._aliases)
        changed = (options, settings.format) != (self._options(), before.format)
        if self._session is not None and changed:
            self._session.change(options, settings.format.decoder())
            becomes_manual = before.turn_detection and not settings.turn_detection
            self._count_from(0 if becomes_manual else self._uncommitted())
        self._settings = settings
        return [self._session_event("updated")]

    # Events of the server

    def render(self, event: Event) -> Sequence[str]:
        """See :class:`api.live.conversation.Dialect`."""
        sent: list[str] = []
        item = self._item(event.turn)
        match event.kind:
            case "speech_start":
                at = {"audio_start_ms": _ms(event.start), "item_id": item}
                sent.append(self._event("input_audio_buffer.speech_started", **at))
            case "speech_end":
                at = {"audio_end_ms": _ms(event.end), "item_id": item}
                sent.append(self._event("input_audio_buffer.speech_stopped", **at))
            case "turn":
                sent += self._committed(item)
            case "cleared":
                sent.append(self._event("input_audio_buffer.cleared"))
            case "error":
                sent.append(self._family_error(event.code, event.text))
        return [*sent, *map(self._transcribed, self._turns.process(event))]

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        """See :class:`api.live.conversation.Dialect`."""
        return [self._family_error(error.code, error.message)]

    def close_code(self, code: str) -> int:
        """See :class:`api.live.conversation.Dialect`."""
        return code_of(code)

    def _session_event(self, what: str) -> str:
        """The event that shows the session as it was created or updated."""
        model = self._live.recogniser(self._options().mode.model, None)
        shown = self._settings.shown(self._id, model, beta=self._beta)
        kind = "transcription_session" if self._beta else "session"
        return self._event(f"{kind}.{what}", session=shown)

    def _committed(self, item: str) -> list[str]:
        """A turn becomes an item of the conversation, after the last one."""
        place = {"previous_item_id": self._last_item}
        self._last_item = item
        message = {
            "id": item,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        kinds = ("created",) if self._beta else ("added", "done")
        return [
            self._event("input_audio_buffer.committed", item_id=item, **place),
            *(self._event(f"conversation.item.{kind}", item=message, **place) for kind in kinds),
        ]

    def _transcribed(self, result: Delta | TurnTranscript) -> str:
        about = {"item_id": self._item(result.turn), "content_index": 0}
        if isinstance(result, Delta):
            return self._event(
                f"{_TRANSCRIPTION}.delta",
                **about,
                delta=result.text,
                **self._logprobs(result.words),
            )
        if result.failure is not None:
            problem = error_object(family_problem(result.failure.code, result.failure.text))
            return self._event(f"{_TRANSCRIPTION}.failed", **about, error=problem)
        return self._event(
            f"{_TRANSCRIPTION}.completed",
            **about,
            transcript=result.text,
            usage={"type": "duration", "seconds": round(result.seconds, 3)},
            **self._logprobs(result.words),
        )

    def _logprobs(self, words: Sequence[Word]) -> dict[str, Any]:
        """Log probabilities, where they are asked for and the model has them."""
        found = logprobs(words) if self._settings.logprobs else []
        return {"logprobs": found} if found else {}

    def _item(self, turn: int) -> str:
        return f"item_{self._id[:16]}_{turn}"

    def _family_error(self, code: str, message: str, event_id: str | None = None) -> str:
        body = error_object(family_problem(code, message))
        return self._error({**body, "code": _CODES.get(code, code)}, event_id)

    def _error(self, body: Mapping[str, Any], event_id: str | None) -> str:
        return self._event("error", error={**body, "event_id": event_id})

    def _event(self, kind: str, **fields: Any) -> str:
        number = f"event_{self._id[:16]}_{next(self._numbers)}"
        return json.dumps({"type": kind, "event_id": number, **fields}, ensure_ascii=False)


def _read(frame: Frame) -> Mapping[str, Any]:
    if len(frame) > MAX_MESSAGE_CHARS:
        message = f"An event has at most {MAX_MESSAGE_CHARS} characters."
        raise _RefusedError("message_too_large", message)
    try:
        event = None if isinstance(frame, bytes) else json.loads(frame)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise _RefusedError("invalid_json", "An event is a JSON object in a text frame.")
    return event


def _audio(event: Mapping[str, Any]) -> bytes:
    if not isinstance(event.get("audio"), str):
        code = "invalid_value" if "audio" in event else "missing_required_parameter"
        raise _RefusedError(code, "audio must be a text in base64.", "audio")
    try:
        return binascii.a2b_base64(event["audio"], strict_mode=True)
    except ValueError as error:
        raise _RefusedError("invalid_audio", f"audio is no base64: {error}", "audio") from None


def _valid(update: type[_Update], event: Mapping[str, Any]) -> _Update:
    try:
        return update.model_validate(event.get("session"))
    except ValidationError as error:
        wrong = error.errors()[0]
        param = ".".join(str(part) for part in ("session", *wrong["loc"]))
        code = _VALUE_CODES.get(wrong["type"], "invalid_value")
        if "format" in param:
            code = "invalid_audio_format"
        raise _RefusedError(code, f"{param}: {wrong['msg']}", param) from None


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
