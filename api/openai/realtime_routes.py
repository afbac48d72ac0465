"""The routes of OpenAI's realtime API: the socket, and client secrets for pages that open it."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket
from typing_extensions import TypedDict

from api.auth.client_secrets import Grant, issue
from api.auth.middleware import grant_of, key_of
from api.errors import Problem, RenderError
from api.live.registry import LiveStreams
from api.live.websocket import serve
from api.openai.errors import RESPONSES, refused, render_error
from api.openai.realtime import BETA, Realtime
from api.openai.realtime_settings import BetaSessionUpdate, SessionUpdate, Settings
from api.openai.requests import Aliases
from speech.errors import InvalidRequest

PATH = "/v1/realtime"
MAX_BODY_BYTES = 256 * 1024
"""Of the requests for client secrets."""
EXAMPLE = {"expires_after": {"seconds": 600}, "session": {"type": "transcription"}}
BETA_EXAMPLE = {"input_audio_format": "pcm16"}
"""The bodies that the pages of the API propose."""


def _render(problem: Problem) -> Response:
    """As on the other routes; ``param`` is the whole path of a field in the JSON."""
    if isinstance(problem.detail, str):
        return render_error(problem)
    first, *_ = problem.detail
    place = () if first["type"] == "json_invalid" else first["loc"][1:]
    named = [{**first, "loc": ("body", ".".join(map(str, place)))[: 1 + bool(place)]}]
    return render_error(replace(problem, detail=named))


ERROR_SHAPES: Mapping[str, RenderError] = {PATH: _render}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Expiry(_Part):
    """When a client secret expires."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(600, ge=10, le=7200, description="From now on.")


class ClientSecretRequest(_Part):
    """Body of ``POST /v1/realtime/client_secrets``."""

    expires_after: Expiry = Expiry()
    session: SessionUpdate = SessionUpdate()


class BetaExpiry(_Part):
    """``client_secret`` of a request of the beta, which has had both names."""

    expires_at: Expiry | None = None
    expires_after: Expiry | None = None


class TranscriptionSessionRequest(BetaSessionUpdate):
    """Body of ``POST /v1/realtime/transcription_sessions``."""

    client_secret: BetaExpiry | None = None

    @property
    def seconds(self) -> int:
        """Until the secret expires."""
        given = self.client_secret or BetaExpiry()
        return (given.expires_at or given.expires_after or Expiry()).seconds


class BetaClientSecret(TypedDict):
    """The secret, and when it expires, in Unix seconds."""

    value: str
    expires_at: int


class ClientSecret(BetaClientSecret):
    """The secret, and the session that it begins."""

    session: dict[str, Any]


class TranscriptionSession(TypedDict):
    """The secret, beside the settings of the session that it begins."""

    id: str
    object: Literal["realtime.transcription_session"]
    client_secret: BetaClientSecret
    input_audio_format: str
    input_audio_transcription: dict[str, Any]
    turn_detection: dict[str, Any] | None
    input_audio_noise_reduction: None
    include: list[str] | None


def router(live: LiveStreams, aliases: Aliases) -> APIRouter:
    """The routes; ``aliases`` are OpenAI's names of models."""
    routes = APIRouter()

    @routes.websocket(PATH)
    async def realtime(
        websocket: WebSocket,
        intent: Annotated[str | None, Query()] = None,
        model: Annotated[str | None, Query()] = None,
    ) -> None:
        # Browsers have no headers: a key and the version come as subprotocols beside this one.
        offered = websocket.scope.get("subprotocols", ())
        beta = BETA in offered or "realtime=v1" in websocket.headers.get("openai-beta", "")
        grant = grant_of(websocket)
        await serve(
            websocket,
            live,
            Realtime(
                live,
                aliases,
                intent=intent,
                model=model,
                beta=beta,
                update=SessionUpdate.model_validate(grant.session) if grant else None,
            ),
            render_error=render_error,
        )

    @routes.post(
        f"{PATH}/client_secrets",
        tags=["openai"],
        summary="A key of a short life for a page that opens a realtime session",
        responses=RESPONSES,
    )
    async def client_secret(
        request: Request,
        body: Annotated[ClientSecretRequest | None, Body(examples=[EXAMPLE])] = None,
    ) -> ClientSecret:
        body = body or ClientSecretRequest()
        shown = describe(body.session, beta=False)
        return {**secret(request, body.session, body.expires_after.seconds), "session": shown}

    @routes.post(
        f"{PATH}/transcription_sessions",
        tags=["openai"],
        summary="The same in the form of the beta",
        responses=RESPONSES,
        response_model=TranscriptionSession,
    )
    async def transcription_session(
        request: Request,
        body: Annotated[TranscriptionSessionRequest | None, Body(examples=[BETA_EXAMPLE])] = None,
    ) -> dict[str, Any]:
        body = body or TranscriptionSessionRequest()
        update = body.today()
        shown = describe(update, beta=True)
        return {**shown, "client_secret": secret(request, update, body.seconds)}

    def describe(update: SessionUpdate, *, beta: bool) -> dict[str, Any]:
        """The session as it will begin. Raises ModelNotFound, NotEnabled, InvalidRequest."""
        settings = Settings().updated(update)
        model = live.recogniser(settings.options(live, aliases).mode.model, None)
        return settings.shown(uuid.uuid4().hex, model, beta=beta)

    def secret(request: Request, update: SessionUpdate, seconds: int) -> BetaClientSecret:
        """For the origin of the request: that of a page, or the one that its server names."""
        session = update.model_dump(mode="json", exclude_unset=True)
        origin = request.headers.get("origin", "")
        grant = Grant(PATH, int(time.time()) + seconds, origin, session)
        try:
            value = issue(key_of(request), grant)
        except InvalidRequest as error:
            raise refused("session", error.message) from None
        return {"value": value, "expires_at": grant.expires_at}

    return routes
