"""Liveness of the ingress, and readiness of the graph behind it."""

import asyncio
import logging
from typing import Literal

from fastapi import APIRouter
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from api.model_devices import ModelDevice, RecentDevices
from api.service import SpeechService
from speech.live.registry import SessionRegistry

log = logging.getLogger(f"speechgraph.{__name__}")

STATES_TIMEOUT_S = 1.0
"""How long liveness waits for the states of the deployments; then no model counts as loaded."""


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
    """Whether every deployment that always has replicas has one that runs.

    ``deployments``: whether each has one, those included that may have none. A replica that is
    being stopped is ``draining`` and lists none. ``devices``: where each loaded model of a required
    deployment runs; where replicas do not answer at once, what they answered before.
    """

    status: Literal["ready", "not_ready", "draining"]
    deployments: dict[str, bool]
    devices: dict[str, list[ModelDevice]]


def router(service: SpeechService, sessions: SessionRegistry, version: str) -> APIRouter:
    """Routes of liveness and readiness; a service that drains is not ready."""
    routes = APIRouter(tags=["health"])
    devices = RecentDevices(service)

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
        responses={503: {"model": Readiness, "description": "A deployment has no replica yet."}},
    )
    async def ready() -> JSONResponse:
        if sessions.draining:
            stopping: Readiness = {"status": "draining", "deployments": {}, "devices": {}}
            return JSONResponse(stopping, 503, headers={"Retry-After": "2"})
        states = await service.deployment_states()
        up = bool(states) and all(state.running or not state.required for state in states.values())
        body: Readiness = {
            "status": "ready" if up else "not_ready",
            "deployments": {name: state.running for name, state in states.items()},
            "devices": await devices.get(),
        }
        return JSONResponse(body) if up else JSONResponse(body, 503, headers={"Retry-After": "2"})

    return routes


async def _serves(service: SpeechService, model: str) -> bool:
    entry = service.catalogue.find(model)
    try:
        async with asyncio.timeout(STATES_TIMEOUT_S):
            states = await service.deployment_states()
    except Exception as error:  # liveness is about this process, whatever else fails
        log.warning("the states of the deployments cannot be read: %r", error)
        return False
    if entry is None:
        return False
    state = states.get(entry.family.title().replace("_", ""))  # OnnxAsr serves onnx_asr
    return state is not None and state.running
