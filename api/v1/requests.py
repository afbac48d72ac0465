"""Requests of the v1 API: ``request_json``, validated and converted to options of the graph."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from api.fields import Language
from api.service import SpeechService, resolve_models
from speech.errors import InvalidRequest
from speech.pipeline import ProcessOptions, Task
from speech.ports import (
    APPEND_PUNCTUATIONS,
    DEFAULT_TEMPERATURES,
    PREPEND_PUNCTUATIONS,
    DiarizeOptions,
    EmotionLevel,
    EmotionOptions,
    TranscribeOptions,
)

MAX_ERROR_CHARS = 2000
V1_EMOTION_NAME = "gigaam_emo"
"""What v1 clients send as ``emo.model_name`` by default: it stands for the default model."""

IdempotencyKey = Annotated[str, Field(pattern=r"^[!-~]{1,255}$")]
Prompt = Annotated[str, Field(max_length=10_000)]
Probability = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]


def _as_tuple(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


class _Block(BaseModel):
    """A part of the request; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class TraSettings(_Block):
    """How to transcribe. Names and defaults are faster-whisper's."""

    model: str | None = Field(None, description="Model id or alias; the default one if absent.")
    language: Language = None
    language_detection_threshold: Probability | None = 0.5
    language_detection_segments: int = Field(1, ge=1, le=100)
    beam_size: int = Field(5, ge=1, le=10)
    no_speech_threshold: Probability | None = 0.6
    word_timestamps: bool = True
    vad_filter: bool = False
    batch_size: int = Field(16, ge=1, le=64)
    task: Literal["transcribe", "translate"] = "transcribe"
    initial_prompt: Prompt | None = None
    log_progress: bool = False
    best_of: int = Field(10, ge=1, le=32)
    patience: float = Field(1.0, gt=0, le=10)
    length_penalty: float = Field(1.0, ge=-10, le=10)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    no_repeat_ngram_size: int = Field(0, ge=0, le=100)
    temperature: Annotated[
        Temperature | Annotated[tuple[Temperature, ...], Field(min_length=1, max_length=16)],
        AfterValidator(_as_tuple),
    ] = DEFAULT_TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    log_prob_threshold: float | None = -1.0
    condition_on_previous_text: bool = True
    prompt_reset_on_temperature: float = 0.5
    prefix: Prompt | None = None
    suppress_blank: bool = True
    suppress_tokens: Annotated[tuple[int, ...], Field(max_length=10_000)] | None = (-1,)
    without_timestamps: bool = False
    max_initial_timestamp: float = Field(1.0, ge=0, le=30)
    prepend_punctuations: str = Field(PREPEND_PUNCTUATIONS, max_length=1000)
    append_punctuations: str = Field(APPEND_PUNCTUATIONS, max_length=1000)
    multilingual: bool = False
    vad_parameters: dict[str, int | float | bool | None] | None = None
    max_new_tokens: int | None = Field(None, ge=1, le=448)
    chunk_length: int | None = Field(None, ge=1, le=30)
    clip_timestamps: (
        Annotated[str, Field(max_length=10_000)]
        | Annotated[tuple[float, ...], Field(max_length=1000)]
    ) = "0"
    hallucination_silence_threshold: float | None = Field(None, ge=0)
    hotwords: Prompt | None = None

    def options(self) -> TranscribeOptions:
        """The options of the graph."""
        return TranscribeOptions(**self.model_dump())


SpeakerCount = Annotated[int, Field(ge=1, le=64)]


class DiaSettings(_Block):
    """How to find the speakers."""

    model: str | None = Field(None, description="Model id or alias; the default one if absent.")
    use_gpu: bool = True
    stereo_mode: bool = Field(False, description="Each of two channels is one speaker, L0 and R0.")
    num_speakers: SpeakerCount | None = None
    min_speakers: SpeakerCount | None = None
    max_speakers: SpeakerCount | None = None

    @model_validator(mode="after")
    def _counts_agree(self) -> "DiaSettings":
        low, high = self.min_speakers, self.max_speakers
        if low is not None and high is not None and low > high:
            raise ValueError("min_speakers is above max_speakers")
        return self


class EmoSettings(_Block):
    """What to classify, and with which model."""

    analysis_level: EmotionLevel = "word"
    model_name: str | None = Field(V1_EMOTION_NAME, description="Model id or alias.")


class Settings(_Block):
    """The tasks, and how to do each. An absent or null block stands for its defaults."""

    tasks: list[Task] = Field(["transcribe"], min_length=1, max_length=16)
    tra: TraSettings | None = None
    dia: DiaSettings | None = None
    emo: EmoSettings | None = None
    partial_results: bool = False


class ProcessRequest(_Block):
    """Content of ``request_json``."""

    settings: Settings
    format_output: Literal["json", "text"] = "json"
    async_process: bool = Field(False, description="Queue the file as a job and answer at once.")
    partial_results: bool = Field(
        False, description="A task that fails is listed in errors and leaves the others standing."
    )

    idempotency_key: IdempotencyKey | None = Field(
        None, description="Like the header Idempotency-Key; with async_process."
    )
    webhook_url: str | None = Field(
        None, description="Where to POST that the job has ended; with async_process."
    )

    @model_validator(mode="after")
    def _webhook_needs_a_job(self) -> "ProcessRequest":
        if self.webhook_url is not None and not self.async_process:
            raise ValueError("webhook_url needs async_process")
        return self

    @property
    def wants_partial_results(self) -> bool:
        """Asked for at either of the two places."""
        return self.partial_results or self.settings.partial_results

    @classmethod
    def parse(cls, text: str) -> "ProcessRequest":
        """Read the form field. Raises InvalidRequest with what pydantic found."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            found = str(error)[:MAX_ERROR_CHARS]
            raise InvalidRequest(f"Invalid 'request_json' payload: {found}") from None

    @classmethod
    def of_form(cls, text: str | None, tasks: list[Task], **tra: str | None) -> "ProcessRequest":
        """Read ``request_json`` and the fields beside it, which replace what it has.

        Raises InvalidRequest with what pydantic found.
        """
        request = cls.parse(text or '{"settings": {}}')
        given = {name: value for name, value in tra.items() if value is not None}
        settings = request.settings
        changed: dict[str, Any] = {"tasks": tasks} if tasks else {}
        if given:
            changed["tra"] = (settings.tra or TraSettings()).model_copy(update=given)
        return request.model_copy(update={"settings": settings.model_copy(update=changed)})

    def options(self, service: SpeechService) -> ProcessOptions:
        """The options of the graph, every model named by the catalogue id that ``service`` has.

        Raises what :func:`api.service.resolve_models` raises.
        """
        tra = self.settings.tra or TraSettings()
        dia = self.settings.dia or DiaSettings()
        emo = self.settings.emo or EmoSettings()
        named = None if emo.model_name == V1_EMOTION_NAME else emo.model_name
        options = ProcessOptions(
            tasks=frozenset(self.settings.tasks),
            transcribe=tra.options(),
            diarize=DiarizeOptions(**dia.model_dump()),
            emotion=EmotionOptions(named, emo.analysis_level),
            partial_results=self.wants_partial_results,
        )
        return resolve_models(service, options)


class ProcessRequestText:
    """Marks a string as JSON text of a :class:`ProcessRequest`, for OpenAPI."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        content = handler(ProcessRequest.__pydantic_core_schema__)
        return handler(schema) | {
            "contentMediaType": "application/json",
            "contentSchema": content,
        }
