"""Errors on the wire: one table from the error family to HTTP, and a renderer for each dialect.

Handlers raise. :class:`ErrorBoundary` turns what they raised into a :class:`Problem`, and the
dialect that owns the path renders it.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypedDict

from api.request_id import request_id
from speech.errors import Overloaded, SpeechError

log = logging.getLogger(f"speechgraph.{__name__}")

STATUS: Mapping[str, int] = {
    "invalid_request": 422,
    "model_not_found": 422,
    "model_not_installed": 422,
    "not_enabled": 422,
    "too_many_channels": 422,
    "fetch_failed": 422,
    "empty_audio": 400,
    "unsupported_audio": 415,
    "audio_too_large": 413,
    "audio_too_long": 413,
    "stream_too_long": 413,
    "upload_too_slow": 408,
    "idle_timeout": 408,
    "overloaded": 503,
    "too_far_ahead": 503,
    "model_unavailable": 503,
    "out_of_memory": 503,
    "cancelled": 503,
    "deadline_exceeded": 504,
    "engine_failed": 500,
    "internal_error": 500,
}
"""HTTP status of every code of :mod:`speech.errors`."""

DEFAULT_RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as HTTP; ``detail`` is a text, or the list of fields that are missing or wrong."""

    status: int
    code: str
    detail: str | list[dict[str, Any]]
    headers: Mapping[str, str] = field(default_factory=dict)


RenderError = Callable[[Problem], Response]


class FieldError(TypedDict):
    """One part of the request that is missing or of the wrong type."""

    type: str
    loc: list[str | int]
    msg: str


class ErrorBody(TypedDict):
    """Body of every error of the v1 API."""

    detail: str | list[FieldError]
    code: str


def render_detail(problem: Problem) -> Response:
    """The shape of the v1 API and of every path that no other dialect claims."""
    body = {"detail": problem.detail, "code": problem.code}
    return JSONResponse(body, problem.status, headers=problem.headers)


def problem_of(error: Exception) -> Problem:
    """The problem of an error; one from outside the family is logged, and its text is withheld."""
    if not isinstance(error, SpeechError) or error.code == SpeechError.code:
        log.error("request %s failed", request_id.get(), exc_info=error)
        return Problem(500, SpeechError.code, f"internal error in request {request_id.get()}")
    if error.detail:
        log.warning("request %s: %s", request_id.get(), error)
    wait_s = error.retry_after_s if isinstance(error, Overloaded) else DEFAULT_RETRY_AFTER_S
    return family_problem(error.code, error.message, wait_s)


def family_problem(
    code: str, message: str, retry_after_s: float = DEFAULT_RETRY_AFTER_S
) -> Problem:
    """The problem of an error of the family, by its code."""
    status = STATUS[code]
    if status >= 500:
        log.warning("request %s: %s: %s", request_id.get(), code, message)
    headers = retry_after(retry_after_s) if status == 503 else {}
    return Problem(status, code, message, headers)


def retry_after(seconds: float) -> dict[str, str]:
    """The header Retry-After, in whole seconds."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def problem_of_http(error: HTTPException) -> Problem:
    """The problem of an error that the web framework raised."""
    if isinstance(error.__cause__, SpeechError):
        # FastAPI wraps every error that is raised while it reads a body in a 400 of its own.
        return problem_of(error.__cause__)
    if isinstance(error.__cause__, RequestValidationError):
        return problem_of_form(error.__cause__)
    slug = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    code = "invalid_request" if error.status_code == 400 else slug
    return Problem(error.status_code, code, error.detail, error.headers or {})


def problem_of_form(error: RequestValidationError) -> Problem:
    """The problem of an incomplete form; the values that were sent are not repeated."""
    fields = [{key: item[key] for key in ("type", "loc", "msg")} for item in error.errors()]
    return Problem(422, "invalid_request", fields)


class ErrorShapes:
    """How each dialect renders a problem, by path prefix; the longest prefix wins.

    :func:`render_detail` renders those of all other paths. The two handlers are for the app's
    ``exception_handlers``: what the web framework itself raises.
    """

    def __init__(self, shapes: Mapping[str, RenderError]) -> None:
        self._shapes = sorted(shapes.items(), key=lambda item: len(item[0]), reverse=True)

    def render(self, scope: Scope, problem: Problem) -> Response:
        """The answer to a problem on the path of ``scope``."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        matching = (render for prefix, render in self._shapes if path.startswith(prefix))
        return next(matching, render_detail)(problem)

    async def on_http_exception(self, request: Request, error: Exception) -> Response:
        """Unknown path, wrong method, broken form and the like."""
        assert isinstance(error, HTTPException)
        return self.render(request.scope, problem_of_http(error))

    async def on_invalid_form(self, request: Request, error: Exception) -> Response:
        """A request that FastAPI finds incomplete."""
        assert isinstance(error, RequestValidationError)
        return self.render(request.scope, problem_of_form(error))


class ErrorBoundary:
    """ASGI middleware that answers every error which leaves the app, in the shape of its path."""

    def __init__(self, app: ASGIApp, shapes: ErrorShapes) -> None:
        self.app = app
        self.shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            problem = problem_of(error)
            if started:
                raise
            await self.shapes.render(scope, problem)(scope, receive, send)


_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
_DESCRIPTIONS = {
    400: "The audio is empty, or the form is malformed.",
    404: "Not found.",
    408: "The upload stalls or is too slow.",
    413: "The upload has too many bytes, or the audio too many seconds.",
    415: "The upload cannot be decoded as audio.",
    422: "The request is incomplete, contradictory, or asks for what is not served here.",
    500: "A model failed, or an internal error.",
    503: "Too busy, or a model is unavailable; retry after Retry-After seconds.",
    504: "The request did not finish within its deadline.",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of the errors that a route may answer."""
    return {
        status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]}
        | ({"headers": _RETRY_AFTER} if status == 503 else {})
        for status in statuses
    }
