"""Whether the ingress lives, and whether the graph behind it can work."""

from typing import Literal

from fastapi import APIRouter
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from api.service import SpeechService


class Health(TypedDict):
    """Answer of a living ingress."""

    status: Literal["ok"]
    version: str


class Readiness(TypedDict):
    """Whether every required deployment has a healthy replica."""

    status: Literal["ready", "not_ready"]
    deployments: dict[str, bool]


def router(service: SpeechService, version: str) -> APIRouter:
    """Routes of liveness and readiness."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health", summary="Liveness: this process answers")
    async def health() -> Health:
        return {"status": "ok", "version": version}

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
