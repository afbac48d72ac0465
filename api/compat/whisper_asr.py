"""The dialect of a simple Whisper server: ``POST /transcribe``, options wherever they are put."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile as FilePart
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from api.auth.routes import render_refusal
from api.errors import Problem, RenderError, render_detail, responses
from api.fields import Language
from api.openai.responses import WARNINGS_HEADER, VerboseSegment, verbose_segment
from api.service import SpeechService, resolve_models
from configs.settings import AsrSettings
from speech.errors import EmptyAudio, ModelUnavailable
from speech.languages import language_code
from speech.media.tempo import FASTEST, SLOWEST
from speech.pipeline import ProcessOptions, Task
from speech.ports import TranscribeOptions
from speech.transcript import Transcript

PATH = "/transcribe"
MAX_CLIP_TIMES = 1000
MAX_FIELDS = 128
"""Most text parts of the form; a list is sent as one part for each value."""
MAX_JSON_BYTES = 1024**2

FAILED = "Ошибка транскрибации"
NO_MODEL = "Модель не загружена"
AUTO = "auto"

ClipTimes = Annotated[list[float], Field(max_length=MAX_CLIP_TIMES)]
Punctuation = Annotated[str, Field(max_length=1000)]


def _seconds(given: Any) -> Any:
    """Whisper's own notation, ``"0,10,20"``, beside a list."""
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list):
        return given
    split = (value.split(",") if isinstance(value, str) else [value] for value in values)
    return [value for value in chain.from_iterable(split) if value != ""] or None


def _or_auto(given: Any, code_of: ValidatorFunctionWrapHandler) -> Any:
    """To ask for detection is not to leave the language to the default of the service."""
    asks = isinstance(given, str) and given.strip()
    return code_of(given) or (AUTO if asks else None)


class AsrOptions(BaseModel):
    """Every option of ``/transcribe``; the ranges are those of the recogniser.

    Where null is allowed it stands for the default of the service. Unknown names are listed in a
    warning.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    format: Literal["json", "simple", "text"] = "json"
    language: Annotated[Language, WrapValidator(_or_auto)] = None
    task: Literal["transcribe", "translate"] = "transcribe"
    temperature: float = Field(0.0, ge=0, le=2)
    beam_size: int | None = Field(None, ge=1, le=64)
    best_of: int | None = Field(None, ge=1, le=64)
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    condition_on_previous_text: bool = True
    initial_prompt: str | None = Field(None, max_length=10_000)
    word_timestamps: bool = False
    prepend_punctuations: Punctuation | None = None
    append_punctuations: Punctuation | None = None
    clip_timestamps: Annotated[ClipTimes | None, BeforeValidator(_seconds)] = None
    hallucination_silence_threshold: float | None = Field(None, ge=0)
    speedup: float | None = Field(
        None,
        ge=SLOWEST,
        le=FASTEST,
        description="Speed of the audio for the recogniser, at the same pitch; 1 as it is.",
    )

    def given(self) -> dict[str, Any]:
        """The options that the request sets."""
        return {name: value for name, value in self if name in self.model_fields_set}

    def options(self, service: SpeechService, defaults: AsrSettings) -> ProcessOptions:
        """The options of the graph. Raises what :func:`api.service.resolve_models` raises."""
        chosen = self.model_dump(include=_RECOGNISERS, exclude_none=True)
        chosen["language"] = language_code(self.language or defaults.language)
        # As in the original: one temperature, so no retries at higher ones.
        chosen["temperature"] = (self.temperature,)
        if self.logprob_threshold is not None:
            chosen["log_prob_threshold"] = self.logprob_threshold
        if self.clip_timestamps:
            chosen["clip_timestamps"] = tuple(self.clip_timestamps)
        tasks: frozenset[Task] = frozenset({"transcribe"})
        speedup = defaults.speedup if self.speedup is None else self.speedup
        options = ProcessOptions(tasks, TranscribeOptions(**chosen), speedup=speedup)
        return resolve_models(service, options)


_RECOGNISERS = {f.name for f in fields(TranscribeOptions)} & set(AsrOptions.model_fields)


class AsrForm(AsrOptions):
    """The form: the file, options as fields, and at most one part that has them as JSON."""

    audio_file: UploadFile = Field(description="Audio or video in any common container.")


class Word(TypedDict):
    """A word with the space before it."""

    word: str
    start: float
    end: float
    probability: float | None


class SegmentWithWords(VerboseSegment):
    """A segment with word_timestamps."""

    words: list[Word]


class AsrTranscription(TypedDict):
    """``format: json``; ``language`` is null where no speech was found."""

    text: str
    segments: list[VerboseSegment | SegmentWithWords]
    language: str | None


class AsrText(TypedDict):
    """``format: simple``."""

    text: str


def _render_error(problem: Problem) -> Response:
    if not isinstance(problem.detail, str):
        missing = [{**d, "input": None} if d["type"] == "missing" else d for d in problem.detail]
        return render_detail(replace(problem, detail=missing))
    if problem.code == ModelUnavailable.code:
        problem = replace(problem, detail=NO_MODEL)
    elif problem.status not in (401, 403, 404, 405, 429):
        problem = replace(problem, detail=f"{FAILED}: {problem.detail}")
    return render_refusal(problem)


ERROR_SHAPES: Mapping[str, RenderError] = {PATH: _render_error}


def router(service: SpeechService, defaults: AsrSettings, route_class: type[APIRoute]) -> APIRouter:
    """The route; ``route_class`` bounds it, see :func:`api.limits.heavy_route`."""

    class FormRoute(route_class):  # type: ignore[misc, valid-type]
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(name, _as_form(name, value)) for name, value in scope["headers"]]
            await super().handle({**scope, "headers": headers}, receive, send)

    routes = APIRouter(tags=["asr"], route_class=FormRoute, form_limits={"max_fields": MAX_FIELDS})

    @routes.post(
        PATH,
        summary="Transcribe a file, with Whisper's answer",
        response_model=AsrTranscription | AsrText,
        responses={200: {"content": {"text/plain": {}}}, **responses(400, 408, 413, 415, 422)}
        | responses(500, 503, 504),
    )
    async def transcribe(
        query: Annotated[AsrOptions, Query()],
        form: Annotated[AsrForm, Form(media_type="multipart/form-data")],
    ) -> Response:
        form_options = form.given()
        file: UploadFile = form_options.pop("audio_file")
        part = await _json_part(form_options)
        options = AsrOptions.model_validate({**part, **form_options, **query.given()})
        work = options.options(service, defaults)
        data = await file.read()
        await file.close()
        if not data:
            raise EmptyAudio("the file is empty")
        transcript = await service.process(data, work)
        return await run_in_threadpool(_answer, transcript, options)

    return routes


def _as_form(name: bytes, value: bytes) -> bytes:
    """curl lines of the original's README label a form as JSON; its boundary is still given."""
    kind, _, parameters = value.partition(b";")
    is_json = name == b"content-type" and kind == b"application/json"
    mislabelled = is_json and b"boundary=" in parameters
    return b"multipart/form-data;" + parameters if mislabelled else value


async def _json_part(form_options: dict[str, Any]) -> dict[str, Any]:
    """Take the part that is JSON out of the form and read it; its name is up to the client.

    Raises RequestValidationError.
    """
    found: dict[str, str] = {}
    for name in set(form_options) - set(AsrOptions.model_fields):
        value = form_options[name]
        if isinstance(value, str) and value.lstrip().startswith("{"):
            found[name] = form_options.pop(name)
        elif isinstance(value, FilePart) and value.content_type == "application/json":
            text = await form_options.pop(name).read(MAX_JSON_BYTES + 1)
            found[name] = text.decode(errors="replace")
    if len(found) > 1:
        raise _wrong_part(sorted(found)[1], "value_error", "one JSON part is taken, not several")
    for name, text in found.items():
        if len(text) > MAX_JSON_BYTES:
            raise _wrong_part(name, "value_error", f"larger than {MAX_JSON_BYTES} bytes")
        try:
            return AsrOptions.model_validate_json(text).given()
        except ValidationError as error:
            raise RequestValidationError(
                [{**e, "loc": ("body", name, *e["loc"])} for e in error.errors()]
            ) from None
    return {}


def _wrong_part(name: str, kind: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", name), "msg": message}])


def _answer(transcript: Transcript, options: AsrOptions) -> Response:
    unknown = (f"the option '{name[:64]}' is not known here" for name in options.model_extra or ())
    warnings = [*unknown, *transcript.warnings]
    headers = {WARNINGS_HEADER: json.dumps(warnings)} if warnings else {}
    if options.format == "text":
        return PlainTextResponse(transcript.text, headers=headers)
    body: AsrTranscription | AsrText = {"text": transcript.text}
    if options.format == "json":
        body = _whisper(transcript, options)
    return Response(
        to_json(body, inf_nan_mode="null"), media_type="application/json", headers=headers
    )


def _whisper(transcript: Transcript, options: AsrOptions) -> AsrTranscription:
    segments: list[VerboseSegment | SegmentWithWords] = []
    for number, segment in enumerate(transcript.segments or ()):
        body = verbose_segment(number, segment)
        words: list[Word] = [
            {"word": w.text, "start": w.start, "end": w.end, "probability": w.probability}
            for w in segment.words
        ]
        segments.append({**body, "words": words} if options.word_timestamps else body)
    return {"text": transcript.text, "segments": segments, "language": transcript.language}
