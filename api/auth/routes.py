"""``POST /keys/reload`` and ``GET /keys/count``, as Simple ASR Service has them."""

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from api.auth.key_file import KeyFile
from api.errors import Problem, RenderError, render_detail

_TEXTS = {"missing_api_key": "Not authenticated", "invalid_api_key": "Неверный API ключ"}


class Reloaded(TypedDict):
    """Answer of ``POST /keys/reload``."""

    message: str


class KeyCount(TypedDict):
    """How many keys open this service."""

    count: int


def render_refusal(problem: Problem) -> Response:
    """The shape of Simple ASR Service for a key that is missing or wrong; else the v1 shape."""
    text = _TEXTS.get(problem.code)
    if text is None:
        return render_detail(problem)
    return JSONResponse({"detail": text}, problem.status, headers=problem.headers)


ERROR_SHAPES: Mapping[str, RenderError] = {"/keys/": render_refusal}


def router(keys: KeyFile) -> APIRouter:
    """The routes. The keys are read again with every request anyhow, in every replica."""
    routes = APIRouter(prefix="/keys", tags=["keys"])

    @routes.post("/reload", summary="Read the key file again")
    async def reload() -> Reloaded:
        return {"message": f"Перезагружено {keys.count()} ключей"}

    @routes.get("/count", summary="How many keys there are")
    async def count() -> KeyCount:
        return {"count": keys.count()}

    return routes
