"""Requests of OpenAI's audio routes: their forms, converted to options of the graph."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from api.fields import Language
from api.openai.errors import refused
from api.service import SpeechService, resolve_models
from speech.pipeline import ProcessOptions, Task
from speech.ports import (
    DEFAULT_TEMPERATURES,
    DiarizeOptions,
    EmotionLevel,
    EmotionOptions,
    TranscribeOptions,
)

Aliases = Mapping[str, str | None]
"""OpenAI's model names: a catalogue id, or None for the default model of the task."""

TranslationFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
TranscriptionFormat = Literal[TranslationFormat, "diarized_json"]
Granularity = Literal["word", "segment"]
Hint = Annotated[str, Field(max_length=10_000)]

STREAMED_FORMATS = ("json", "text", "diarized_json")
FORMATS_WITH_EMOTION = ("json", "verbose_json", "diarized_json")
CHUNKING = "chunking_strategy"
NO_VOICES = "This service compares no voices: it cannot recognise known speakers."


def _listed(name: str) -> AliasChoices:
    """The name of a list as OpenAI's clients send it, and without the brackets."""
    return AliasChoices(f"{name}[]", name)


def _from_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


class ServerVad(BaseModel):
    """How voice activity detection finds speech; what is absent is the recogniser's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    type: Literal["server_vad"]
    prefix_padding_ms: int | None = Field(None, ge=0, le=10_000)
    silence_duration_ms: int | None = Field(None, ge=0, le=60_000)
    threshold: float | None = Field(None, ge=0, le=1)

    def parameters(self) -> dict[str, float] | None:
        """The same by the names of :attr:`speech.ports.TranscribeOptions.vad_parameters`."""
        named = {
            "speech_pad_ms": self.prefix_padding_ms,
            "min_silence_duration_ms": self.silence_duration_ms,
            "threshold": self.threshold,
        }
        return {name: value for name, value in named.items() if value is not None} or None


class Form(BaseModel):
    """A form of the audio routes. Unknown fields are named in a warning."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    file: UploadFile = Field(description="Audio or video in any common container.")
    model: str | None = Field(
        None, description="Model id, alias, or a name of OpenAI's; the default one if absent."
    )

    def model_of(self, aliases: Aliases) -> str | None:
        """The catalogue's name of the model, None for the default of the task."""
        return aliases.get(self.model, self.model) if self.model else None

    def notes(self) -> list[str]:
        """Warnings about options that are not honoured."""
        return [f"the field '{name[:64]}' is not known here" for name in self.model_extra or ()]


class SpeechForm(Form):
    """What both speech routes take; ``emotion``, ``hotwords`` and ``vad_filter`` are our own."""

    prompt: Hint | None = None
    response_format: TranscriptionFormat = "json"
    temperature: float = Field(0.0, ge=0, le=1, description="0: raised where a window looks wrong.")
    emotion: EmotionLevel | None = Field(None, description="What to classify the emotions of.")
    hotwords: Hint | None = Field(None, description="Phrases parted by commas.")
    vad_filter: bool | None = Field(None, description="Leave silence out.")

    @property
    def granularities(self) -> set[Granularity]:
        """What verbose_json has times of."""
        return {"segment"}

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer has the log probability of each word."""
        return False

    def _resolved(self, service: SpeechService, aliases: Aliases, **more: Any) -> ProcessOptions:
        """The options of this form, and ``more`` of the recogniser's."""
        wanted = self.response_format
        if self.emotion and wanted not in FORMATS_WITH_EMOTION:
            raise refused("emotion", f"response_format '{wanted}' has no place for emotions.")
        tasks: set[Task] = {"transcribe"}
        if wanted == "diarized_json":
            tasks.add("diarization")
        if self.emotion:
            tasks.add("emotion")
        transcribe = {
            "model": self.model_of(aliases),
            "word_timestamps": len(tasks) > 1 or wanted in ("srt", "vtt"),
            "initial_prompt": self.prompt,
            "temperature": (self.temperature,) if self.temperature else DEFAULT_TEMPERATURES,
            "hotwords": self.hotwords,
            "vad_filter": bool(self.vad_filter),
        }
        options = ProcessOptions(
            tasks=frozenset(tasks),
            transcribe=TranscribeOptions(**(transcribe | more)),
            emotion=EmotionOptions(level=self.emotion or "word"),
        )
        return resolve_models(service, options)


class _SpeakersForm(Form):
    """What both routes that find speakers take."""

    known_speaker_names: list[str] = Field([], validation_alias=_listed("known_speaker_names"))
    known_speaker_references: list[str] = Field(
        [], validation_alias=_listed("known_speaker_references")
    )

    def _refuse_known_speakers(self) -> None:
        if self.known_speaker_names:
            raise refused("known_speaker_names[]", NO_VOICES)
        if self.known_speaker_references:
            raise refused("known_speaker_references[]", NO_VOICES)


class TranscriptionForm(SpeechForm, _SpeakersForm):
    """``POST /v1/audio/transcriptions``."""

    language: Language = None
    languages: list[Language] = Field([], validation_alias=_listed("languages"))
    keywords: list[Hint] = Field([], validation_alias=_listed("keywords"))
    timestamp_granularities: list[Granularity] = Field(
        [], validation_alias=_listed("timestamp_granularities")
    )
    include: list[Literal["logprobs"]] = Field([], validation_alias=_listed("include"))
    stream: bool = False
    chunking_strategy: Annotated[
        Literal["auto"] | ServerVad | None, BeforeValidator(_from_json)
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _join_brackets(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """OpenAI's clients send the object of chunking_strategy as one field for each key."""
        prefix = f"{CHUNKING}["
        keys = {key.removeprefix(prefix).rstrip("]"): key for key in given if prefix in key}
        if not keys:
            return given
        rest = {key: value for key, value in given.items() if prefix not in key}
        return rest | {CHUNKING: {name: given[key] for name, key in keys.items()}}

    @property
    def granularities(self) -> set[Granularity]:
        """What verbose_json has times of."""
        return set(self.timestamp_granularities or ["segment"])

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer has the log probability of each word."""
        return bool(self.include)

    def notes(self) -> list[str]:
        """Warnings about options that are not honoured."""
        notes = super().notes()
        if len(self.languages) > 1 and not self.language:
            notes.append("languages[]: the language is detected among all that the model knows")
        return notes

    def options(self, service: SpeechService, aliases: Aliases) -> ProcessOptions:
        """The options of the graph, every model named by the catalogue id that ``service`` has.

        Raises RequestValidationError for a field that contradicts another or cannot be honoured,
        and what :func:`api.service.resolve_models` raises.
        """
        self._check()
        language = self.language or (self.languages[0] if len(self.languages) == 1 else None)
        hotwords = [self.hotwords, *self.keywords] if self.hotwords else self.keywords
        vad = self.chunking_strategy
        more: dict[str, Any] = {
            "language": language,
            "hotwords": ", ".join(hotwords) or None,
            "vad_filter": bool(self.vad_filter) or vad is not None,
            "vad_parameters": vad.parameters() if isinstance(vad, ServerVad) else None,
        }
        if "word" in self.granularities or self.wants_logprobs:
            more["word_timestamps"] = True
        return self._resolved(service, aliases, **more)

    def _check(self) -> None:
        wanted = self.response_format
        self._refuse_known_speakers()
        # Segments are what a format has by itself, so to name them asks for nothing.
        if "word" in self.timestamp_granularities and wanted != "verbose_json":
            message = f"response_format '{wanted}' has no times of words; verbose_json has."
            raise refused("timestamp_granularities[]", message)
        if self.include and wanted != "json":
            raise refused("include[]", f"response_format '{wanted}' has no log probabilities.")
        if self.stream and wanted not in STREAMED_FORMATS:
            raise refused("stream", f"response_format '{wanted}' cannot be streamed.")
        if self.chunking_strategy is not None and self.vad_filter is False:
            raise refused("vad_filter", f"{CHUNKING} needs voice activity detection.")


class TranslationForm(SpeechForm):
    """``POST /v1/audio/translations``."""

    response_format: TranslationFormat = "json"

    def options(self, service: SpeechService, aliases: Aliases) -> ProcessOptions:
        """See :meth:`TranscriptionForm.options`."""
        return self._resolved(service, aliases, task="translate")


class DiarizationForm(_SpeakersForm):
    """``POST /v1/audio/diarization``: who spoke when, without the words."""

    response_format: Literal["json", "rttm"] = "json"

    def options(self, service: SpeechService, aliases: Aliases) -> ProcessOptions:
        """See :meth:`TranscriptionForm.options`."""
        self._refuse_known_speakers()
        diarize = DiarizeOptions(model=self.model_of(aliases))
        tasks: frozenset[Task] = frozenset({"diarization"})
        return resolve_models(service, ProcessOptions(tasks, diarize=diarize))
