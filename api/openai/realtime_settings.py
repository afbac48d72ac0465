"""The settings of a ``/v1/realtime`` session, in today's form and in the beta's.

An update changes the fields that it has. The settings are shown as they take effect: what this
service does not do, such as noise reduction, is null.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.fields import Language
from api.live.registry import LiveStreams
from api.openai.requests import Aliases
from configs.catalogue import ModelEntry
from speech.errors import ModelNotFound
from speech.live.endpointing import EndpointOptions
from speech.live.pcm import PcmDecoder, PcmEncoding, PcmFormat
from speech.live.session_options import FrameSynchronous, SessionOptions, WholeUtterances
from speech.live.stream_decoder import StreamDecoder
from speech.ports import MAX_HOTWORDS, TranscribeOptions

LOGPROBS = "item.input_audio_transcription.logprobs"
COMMITTED_BY_CLIENT = EndpointOptions(
    threshold=0.3,
    end_threshold=0.2,
    min_speech_s=0.03,
    silence_s=1.0,
    pre_roll_s=0.5,
    tail_s=0.5,
)
"""A client that commits means to speak: faint speech counts too, with more audio around it."""

_EAGERNESS_MS: Mapping[str | None, int] = {"high": 500, "low": 2000}
"""The pause that ends a turn in place of semantic_vad; without an entry, a second."""

Prompt = Annotated[str, Field(max_length=10_000)]
Keyword = Annotated[str, Field(max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Format(_Part):
    """Bare mono samples, little-endian; G.711 is always at 8 kHz."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = Field(None, ge=8000, le=48_000, description="Hz; 24000 for PCM if absent.")

    @model_validator(mode="after")
    def _telephone(self) -> "Format":
        if self.type != "audio/pcm" and self.rate not in (None, 8000):
            raise ValueError("G.711 has 8000 samples per second")
        return self

    @property
    def pcm(self) -> PcmFormat:
        """The size of samples and their rate."""
        if self.type == "audio/pcm":
            return PcmFormat(self.rate or 24_000, 2)
        return PcmFormat(8000, 1)

    def decoder(self) -> StreamDecoder:
        """A decoder of this format."""
        encodings: Mapping[str, PcmEncoding] = {
            "audio/pcm": "pcm_s16le",
            "audio/pcmu": "g711_ulaw",
            "audio/pcma": "g711_alaw",
        }
        return PcmDecoder(encodings[self.type], self.pcm.sample_rate)

    def shown(self) -> dict[str, Any]:
        """The form that clients receive."""
        rate = {"rate": self.pcm.sample_rate} if self.type == "audio/pcm" else {}
        return {"type": self.type, **rate}

    @property
    def beta(self) -> str:
        """The name in the beta."""
        return next(name for name, kind in _BETA_FORMATS.items() if kind == self.type)


_BETA_FORMATS: Mapping[str, Literal["audio/pcm", "audio/pcmu", "audio/pcma"]] = {
    "pcm16": "audio/pcm",
    "g711_ulaw": "audio/pcmu",
    "g711_alaw": "audio/pcma",
}


class Transcription(_Part):
    """How to recognise."""

    model: str | None = Field(None, max_length=200)
    language: Language = None
    languages: list[Language] | None = Field(None, max_length=100)
    prompt: Prompt | None = None
    keywords: list[Keyword] | None = Field(None, max_length=1000)
    delay: Any = None


class TurnDetection(_Part):
    """When a turn begins and ends. Fields about responses are accepted and not used."""

    type: Literal["server_vad", "semantic_vad"]
    threshold: float = Field(0.5, gt=0, lt=1)
    prefix_padding_ms: int = Field(300, ge=0, le=2000)
    silence_duration_ms: int = Field(500, ge=100, le=10_000)
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None
    idle_timeout_ms: None = None

    def effective(self) -> "TurnDetection":
        """What takes effect: a pause ends a turn in either kind, whatever its meaning."""
        if self.type == "server_vad":
            return self
        return TurnDetection(
            type="server_vad", silence_duration_ms=_EAGERNESS_MS.get(self.eagerness, 1000)
        )

    def endpointing(self) -> EndpointOptions:
        """These settings for the session."""
        plain = EndpointOptions()
        return replace(
            plain,
            threshold=self.threshold,
            end_threshold=min(plain.end_threshold, self.threshold),
            silence_s=self.silence_duration_ms / 1000,
            pre_roll_s=self.prefix_padding_ms / 1000,
        )

    def shown(self) -> dict[str, Any]:
        """The form that clients receive."""
        names = {"type", "threshold", "prefix_padding_ms", "silence_duration_ms"}
        return self.model_dump(include=names)


class Input(_Part):
    """The audio and how it is processed."""

    format: Format | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None
    noise_reduction: Any = None


class Audio(_Part):
    """``audio`` of a session; it has input only."""

    input: Input = Input()


Include = list[Literal["item.input_audio_transcription.logprobs"]]


class SessionUpdate(_Part):
    """``session`` of ``session.update``."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: Include | None = None


class BetaSessionUpdate(_Part):
    """``session`` of ``transcription_session.update``, the form of the beta."""

    input_audio_format: Literal["pcm16", "g711_ulaw", "g711_alaw"] | None = None
    input_audio_transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None
    input_audio_noise_reduction: Any = None
    include: Include | None = None
    modalities: Any = None
    client_secret: Any = None

    def today(self) -> SessionUpdate:
        """The same in today's form."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        kind = given.get("input_audio_format")
        if kind is not None:
            given["input_audio_format"] = Format(type=_BETA_FORMATS[kind])
        named = {
            name.removeprefix("input_audio_"): value
            for name, value in given.items()
            if name not in ("include", "modalities", "client_secret")
        }
        include = {"include": self.include} if "include" in given else {}
        return SessionUpdate(audio=Audio(input=Input(**named)), **include)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a session."""

    format: Format = Format()
    transcription: Transcription = Transcription()
    turn_detection: TurnDetection | None = TurnDetection(type="server_vad")
    logprobs: bool = False

    def updated(self, update: SessionUpdate) -> "Settings":
        """With the fields of an update; null means the default, and off for turn detection."""
        given = update.audio.input
        changed: dict[str, Any] = {}
        if "format" in given.model_fields_set:
            changed["format"] = given.format or Format()
        if "transcription" in given.model_fields_set:
            new = given.transcription
            fields = {name: getattr(new, name) for name in new.model_fields_set} if new else {}
            base = self.transcription if new else Transcription()
            changed["transcription"] = base.model_copy(update=fields)
        if "turn_detection" in given.model_fields_set:
            turns = given.turn_detection
            changed["turn_detection"] = turns.effective() if turns else None
        if "include" in update.model_fields_set:
            changed["logprobs"] = LOGPROBS in (update.include or ())
        return replace(self, **changed)

    def options(self, live: LiveStreams, aliases: Aliases) -> SessionOptions:
        """The options of the session. Raises ModelNotFound, NotEnabled, InvalidRequest."""
        wanted, models = self.transcription, live.models
        name = wanted.model and aliases.get(wanted.model, wanted.model)
        try:
            entry = live.recogniser(name, models.streaming or models.utterance or models.general)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error.message} This route transcribes only.") from None
        languages = [wanted.language] if wanted.language else wanted.languages or []
        # A prompt is text before the audio. Models without prompts take it as a hotword.
        whisper = entry.family == "whisper"
        phrases = [
            *(wanted.keywords or ()),
            *([wanted.prompt] if wanted.prompt and not whisper else ()),
        ]
        turns = self.turn_detection
        mode = FrameSynchronous if entry.streaming else WholeUtterances
        options = SessionOptions(
            mode(entry.id, turns="pause" if turns else "commit"),
            endpointing=turns.endpointing() if turns else COMMITTED_BY_CLIENT,
            transcribe=TranscribeOptions(
                language=languages[0] if len(languages) == 1 else None,
                hotwords=", ".join(phrases)[:MAX_HOTWORDS] or None,
                initial_prompt=(wanted.prompt or None) if whisper else None,
            ),
            pcm=self.format.pcm,
        )
        live.check(options)
        return options

    def shown(self, session_id: str, model: ModelEntry, *, beta: bool) -> dict[str, Any]:
        """The form that clients receive; ``model`` is the one in use."""
        given = self.transcription
        transcription = {
            "model": given.model or model.id,
            "language": given.language,
            "prompt": (given.prompt if model.hotwords else None) or "",
            **({"languages": given.languages} if given.languages else {}),
            **({"keywords": given.keywords} if given.keywords and model.hotwords else {}),
        }
        turns = self.turn_detection.shown() if self.turn_detection else None
        include = {"include": [LOGPROBS] if self.logprobs else None}
        about = {"id": f"sess_{session_id}", "object": "realtime.transcription_session"}
        if beta:
            return {
                **about,
                "input_audio_format": self.format.beta,
                "input_audio_transcription": transcription,
                "turn_detection": turns,
                "input_audio_noise_reduction": None,
                **include,
            }
        audio = {
            "format": self.format.shown(),
            "transcription": transcription,
            "turn_detection": turns,
            "noise_reduction": None,
        }
        return {**about, "type": "transcription", "audio": {"input": audio}, **include}
