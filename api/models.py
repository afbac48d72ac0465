"""Which models are served and which are loaded: OpenAI's list shape, and the cache of models."""

import time
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Annotated, Literal, NotRequired

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from api.errors import Problem, RenderError, responses
from api.model_devices import ModelDevice, devices_by_model
from api.openai.errors import error_object
from api.service import SpeechService
from configs.catalogue import ModelEntry


class Model(TypedDict):
    """A model that requests may name; the first four keys are OpenAI's.

    ``languages`` is empty where the model knows many that the catalogue does not list; the next
    four keys are what it can do. ``streaming`` models are frame-synchronous. ``devices`` is where
    the loaded copies run; empty while none is loaded.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    family: str
    languages: list[str]
    translation: bool
    word_timestamps: bool
    streaming: bool
    hotwords: bool
    licence: str
    description: str
    loaded: bool
    devices: list[ModelDevice]
    available: bool
    fetchable: bool
    default: bool


class ModelList(TypedDict):
    """The models that run in this graph."""

    object: Literal["list"]
    data: list[Model]


class CacheEntry(TypedDict):
    """One loaded copy of a model; times are Unix seconds.

    ``asked`` is the setting ``device``. ``fallback`` is why the model does not run on the GPU that
    it should, null otherwise. The memory of the GPU, in MiB, is that in use by all processes before
    the load and after the first window, and what was free then; null on the CPU. ``encoder`` is the
    library that runs the encoder of a Whisper model, null for the others.
    """

    model_name: str
    task_type: str
    wrapper_class: str
    loaded_at: float
    last_used: float
    idle_seconds: float
    use_count: int
    estimated_mem_bytes: int
    asked: Literal["auto", "cpu", "cuda"]
    device: Literal["cpu", "cuda"]
    compute_type: str
    encoder: Literal["torch", "ctranslate2"] | None
    fallback: str | None
    gpu: str | None
    gpu_total_mb: int | None
    gpu_used_before_mb: int | None
    gpu_used_after_mb: int | None
    gpu_free_mb: int | None
    replica: NotRequired[str]


def _render_both(problem: Problem) -> Response:
    """The shape of the v1 API and OpenAI's error object in one: clients of both use the routes."""
    code = "model_not_found" if problem.status == 404 else problem.code
    body = {
        "detail": problem.detail,
        "code": problem.code,
        "error": error_object(replace(problem, code=code)),
    }
    return JSONResponse(body, problem.status, headers=problem.headers)


ERROR_SHAPES: Mapping[str, RenderError] = {"/v1/models": _render_both}


def router(service: SpeechService, aliases: Mapping[str, str | None]) -> APIRouter:
    """Routes of the model list and the model cache; ``aliases`` are OpenAI's names, None means the
    default recogniser.
    """
    routes = APIRouter(tags=["models"])
    started_at = int(time.time())

    async def here() -> tuple[dict[str, list[ModelDevice]], Set[str]]:
        """The models that are loaded, and the ids of those that are available."""
        loaded = devices_by_model(await service.cache_stats())
        return loaded, loaded.keys() | await service.present_models()

    def find(name: str) -> ModelEntry | None:
        id = aliases.get(name, name) or service.default_models["transcribe"]
        return service.catalogue.find(id)

    def describe(
        entry: ModelEntry, loaded: Mapping[str, list[ModelDevice]], available: Set[str]
    ) -> Model:
        repo = entry.source.repo
        return {
            "id": entry.id,
            "object": "model",
            "created": started_at,
            "owned_by": repo.split("/")[0] if repo else "speechgraph",
            "aliases": list(
                dict.fromkeys([*entry.aliases, *(a for a in aliases if find(a) is entry)])
            ),
            "family": entry.family,
            "languages": list(entry.languages),
            "translation": entry.translation,
            "word_timestamps": entry.word_timestamps,
            "streaming": entry.streaming,
            "hotwords": entry.hotwords,
            "licence": entry.licence,
            "description": entry.description,
            "loaded": entry.id in loaded,
            "devices": loaded.get(entry.id, []),
            "available": entry.id in available,
            "fetchable": repo is not None,
            "default": entry.id in service.default_models.values(),
        }

    @routes.get("/v1/models/", include_in_schema=False)
    @routes.get(
        "/v1/models",
        summary="List the models of this service",
        response_model=ModelList,
        responses=responses(422, 500, 503),
    )
    async def list_models(
        available: Annotated[
            bool | None, Query(description="true: only those whose files are here; false: the rest")
        ] = None,
    ) -> JSONResponse:
        loaded, present = await here()
        served = (
            m
            for m in service.catalogue.models
            if m.family in service.families and available in (None, m.id in present)
        )
        body: ModelList = {
            "object": "list",
            "data": [describe(m, loaded, present) for m in served],
        }
        return JSONResponse(body)

    @routes.get(
        "/v1/models/{name:path}",
        summary="Describe one model by id or alias",
        response_model=Model,
        responses=responses(404, 422, 500, 503),
    )
    async def get_model(name: str) -> JSONResponse:
        entry = find(name)
        if entry is None or entry.family not in service.families:
            raise HTTPException(404, f"Model '{name}' is not served here.")
        return JSONResponse(describe(entry, *await here()))

    @routes.get(
        "/cache/stats",
        summary="List the loaded copies of models",
        response_model=list[CacheEntry],
        responses=responses(500, 503),
    )
    async def cache_stats() -> JSONResponse:
        return JSONResponse(await service.cache_stats())

    return routes
