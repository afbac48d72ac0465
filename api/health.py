"""Whether the ingress lives, and whether the graph behind it can work."""

import asyncio
import logging
from typing import Literal

from fastapi import APIRouter
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from api.service import SpeechService

log = logging.getLogger(f"speechgraph.{__name__}")

PATIENCE_S = 1.0
"""How long liveness waits to hear of the model; it is told without it then."""


class Health(TypedDict):
    """Answer of a living ingress.

    ``model_loaded``: a replica runs that recognises speech when no model is named; the last two
    name that model.
    """

    status: Literal["healthy"]
    version: str
    model_loaded: bool
    model_name: str
    current_model: str


class Readiness(TypedDict):
    """Whether every required deployment has a healthy replica."""

    status: Literal["ready", "not_ready"]
    deployments: dict[str, bool]


def router(service: SpeechService, version: str) -> APIRouter:
    """Routes of liveness and readiness."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health", summary="Liveness: this process answers")
    async def health() -> Health:
        model = service.default_models["transcribe"]
        return {
            "status": "healthy",
            "version": version,
            "model_loaded": await _serves(service, model),
            "model_name": model,
            "current_model": model,
        }

    @routes.get(
        "/ready",
        summary="Readiness: every required deployment is up",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "A deployment is not up yet."}},
    )
    async def ready() -> JSONResponse:
        deployments = dict(await service.ready())
        up = all(deployments.values())
        body: Readiness = {"status": "ready" if up else "not_ready", "deployments": deployments}
        return JSONResponse(body) if up else JSONResponse(body, 503, headers={"Retry-After": "2"})

    return routes


async def _serves(service: SpeechService, model: str) -> bool:
    entry = service.catalogue.find(model)
    try:
        async with asyncio.timeout(PATIENCE_S):
            deployments = await service.ready()
    except Exception as error:  # this process lives, whatever ails those that know of the others
        log.warning("readiness is not known: %r", error)
        return False
    return entry is not None and deployments.get(entry.family.capitalize(), False)
