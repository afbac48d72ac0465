"""The REST of a Whisper web service: ``/api/transcribe``, ``/api/models``, ``/api/health``."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired

from fastapi import APIRouter, Form, UploadFile
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypedDict

from api.errors import Problem, RenderError
from api.fields import Language
from api.service import FAMILIES, SpeechService, resolve_models
from api.uploads import TWICE
from speech.errors import EmptyAudio
from speech.pipeline import ProcessOptions, Task
from speech.ports import TranscribeOptions
from speech.transcript import Transcript, whole_ms

PREFIX = "/api/"

SIZES = {
    "tiny": "Самая быстрая модель (~1 ГБ)",
    "base": "Хороший баланс скорости и точности (~1 ГБ)",
    "small": "Более точная модель (~2 ГБ)",
    "medium": "Еще более точная модель (~5 ГБ)",
    "large": "Самая точная модель (~10 ГБ)",
}
"""The model names of the original, and their descriptions."""
NO_FILE = "Файл не найден в запросе"
NOT_TRANSCRIBED = "Ошибка при выполнении транскрипции"
NOT_LISTED = "Ошибка при получении списка моделей"

VAD = {"threshold": 0.5, "min_silence_duration_ms": 1000, "speech_pad_ms": 200}
RUSSIAN_PROMPT = "Это аудио на русском языке."

Aliases = Mapping[str, str | None]
"""Model names: a catalogue id, or None for the default model."""


class TranscribeForm(BaseModel):
    """``POST /api/transcribe``. Unknown fields are ignored, as in the original."""

    model_config = ConfigDict(frozen=True)

    file: UploadFile = Field(description="Audio or video in any common container.")
    model: str | None = Field(None, description="A name of GET /api/models.")
    language: Language = None
    task: Literal["transcribe", "translate"] = "transcribe"

    def options(self, service: SpeechService, aliases: Aliases) -> ProcessOptions:
        """The options that the original passes to its recogniser.

        Raises what :func:`api.service.resolve_models` raises.
        """
        transcribe = TranscribeOptions(
            model=aliases.get(self.model, self.model) if self.model else None,
            language=self.language,
            task=self.task,
            word_timestamps=False,
            vad_filter=True,
            vad_parameters=VAD,
            batch_size=1,  # one window after the other, each with the text before it
            initial_prompt=RUSSIAN_PROMPT if self.language == "ru" else None,
        )
        tasks: frozenset[Task] = frozenset({"transcribe"})
        return resolve_models(service, ProcessOptions(tasks, transcribe))


class RestSegment(TypedDict):
    """A segment; the text begins with a space."""

    text: str
    start: float
    end: float


class RestTranscription(TypedDict):
    """The answer; ``text`` and ``segments`` are absent where no speech was found."""

    text: NotRequired[str]
    language: str
    segments: NotRequired[list[RestSegment]]
    processing_time: float


class RestModels(TypedDict):
    """Name to description; ``loaded_models`` is absent where none is loaded."""

    available_models: dict[str, str]
    loaded_models: NotRequired[list[str]]


class RestHealth(TypedDict):
    """Answer of a living ingress; ``server_time`` as RFC 3339 has it, to the nanosecond."""

    status: Literal["ok"]
    server_time: str
    version: str


@dataclass
class RestMetrics:
    """The transcriptions of this process; ``uptime`` in seconds."""

    requests_total: int = 0
    errors_total: int = 0
    processing_time_ms: int = 0
    uptime: int = 0


class RestError(TypedDict):
    """Body of every error."""

    error: str


def _render_error(problem: Problem) -> Response:
    detail, status = problem.detail, problem.status
    if not isinstance(detail, str):
        wrong = detail[0]
        field = ".".join(map(str, wrong["loc"][1:]))
        if field == "file" and wrong["type"] != TWICE:
            detail, status = NO_FILE, 400
        else:
            detail = f"{NOT_TRANSCRIBED}: {field}: {wrong['msg']}"
    elif problem.status not in (401, 403, 404, 405, 429):
        detail = f"{NOT_TRANSCRIBED}: {detail}"
    return _error(detail, status, problem)


def _render_models_error(problem: Problem) -> Response:
    return _error(f"{NOT_LISTED}: {problem.detail}", problem.status, problem)


def _error(message: str, status: int, problem: Problem) -> Response:
    body: RestError = {"error": message}
    return JSONResponse(body, status, headers=problem.headers)


ERROR_SHAPES: Mapping[str, RenderError] = {
    PREFIX: _render_error,
    f"{PREFIX}models": _render_models_error,
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": RestError, "description": "The file, the form or the model is wrong."},
    "5XX": {
        "model": RestError,
        "description": "500: a model failed. 503: too busy, or a model cannot be served now; "
        "retry after Retry-After seconds. 504: the request took too long.",
    },
}


class Cors:
    """ASGI middleware: pages of any origin may call what is under :data:`PREFIX`."""

    HEADERS: Mapping[str, str] = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type, Content-Length, Accept-Encoding, "
        "Authorization",
    }

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not path.startswith(PREFIX):
            await self.app(scope, receive, send)
            return

        async def allow(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.HEADERS)
            await send(message)

        if scope["method"] == "OPTIONS":
            await Response(status_code=204)(scope, receive, allow)
        else:
            await self.app(scope, receive, allow)


def router(
    service: SpeechService, aliases: Aliases, version: str, route_class: type[APIRoute]
) -> APIRouter:
    """The routes; ``aliases`` map the names of models.

    ``route_class`` bounds the transcription, see :func:`api.limits.heavy_route`.
    """
    routes = APIRouter(prefix=PREFIX.rstrip("/"), tags=["whisper"], responses=RESPONSES)
    heavy = APIRouter(route_class=route_class)
    metrics = RestMetrics()
    started_at = time.monotonic()

    @heavy.post("/transcribe", summary="Transcribe a file", response_model=RestTranscription)
    async def transcribe(
        form: Annotated[TranscribeForm, Form(media_type="multipart/form-data")],
    ) -> Response:
        begun_at = time.monotonic()
        metrics.requests_total += 1
        try:
            options = form.options(service, aliases)
            data = await form.file.read()
            await form.file.close()
            if not data:
                raise EmptyAudio("the file is empty")
            transcript = await service.process(data, options)
        except Exception:
            metrics.errors_total += 1
            raise
        elapsed_s = time.monotonic() - begun_at
        metrics.processing_time_ms += round(elapsed_s * 1000)
        body = _render(transcript, whole_ms(elapsed_s))
        return Response(to_json(body), media_type="application/json")

    @routes.get("/models", summary="List the recognisers by the names that transcribe takes")
    async def list_models() -> RestModels:
        available = _names(service, aliases)
        loaded = {row["model_name"] for row in await service.cache_stats()}
        body: RestModels = {"available_models": {n: text for n, (_, text) in available.items()}}
        if names := [name for name, (id, _) in available.items() if id in loaded]:
            body["loaded_models"] = names
        return body

    @routes.get("/health", summary="Liveness: this process answers")
    async def health() -> RestHealth:
        return {"status": "ok", "server_time": _now(), "version": version}

    @routes.get("/metrics", summary="Count the transcriptions of this process")
    async def counted() -> RestMetrics:
        metrics.uptime = round(time.monotonic() - started_at)
        return metrics

    routes.include_router(heavy)
    return routes


def _names(service: SpeechService, aliases: Aliases) -> dict[str, tuple[str, str]]:
    """Each name that a client may send: the id of its model, and the description.

    A model has those names of :data:`SIZES` and of the aliases that stand for it, else its id.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys([*SIZES, *aliases]):
        id = aliases.get(name, name) or service.default_models["transcribe"]
        entry = service.catalogue.find(id)
        if entry is not None and entry.family in service.families:
            found[name] = (entry.id, SIZES.get(name, entry.description))
    listed = {id for id, _ in found.values()}
    for entry in service.catalogue.models:
        recognises = entry.family in FAMILIES["transcribe"] & service.families
        if recognises and entry.id not in listed:
            found[entry.id] = (entry.id, entry.description)
    return found


def _render(transcript: Transcript, elapsed_s: float) -> RestTranscription:
    body: RestTranscription = {"language": transcript.language or "", "processing_time": elapsed_s}
    if transcript.text:
        body["text"] = transcript.text
    if transcript.segments:
        body["segments"] = [
            {"text": s.text, "start": s.start, "end": s.end} for s in transcript.segments
        ]
    return body


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
