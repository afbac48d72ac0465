"""OpenAI's error object, which renders every failure on its routes."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from api.errors import Problem

_STATUS = {415: 400, 422: 400}
"""OpenAI has one status for every fault of a request but its size."""
_STATUS_OF_CODE = {"model_not_found": 404, "model_not_installed": 404, "invalid_api_key": 401}
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
_ONE_KEY_CODE = {"missing_api_key": "invalid_api_key"}


class ErrorObject(TypedDict):
    """What went wrong; ``param`` names the form field, where it is one field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(TypedDict):
    """Body of every error of OpenAI's routes."""

    error: ErrorObject


# One entry for all of 4XX keeps FastAPI from adding a 422 that is never answered.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": OpenAIErrorBody,
        "description": "400: the form or the audio is not what this route takes. 404: there is no "
        "such model. 408: the upload stalls or is too slow. 413: too many bytes, or too many "
        "seconds.",
    },
    "5XX": {
        "model": OpenAIErrorBody,
        "description": "500: a model failed. 503: too busy, or a model cannot be served now; "
        "retry after Retry-After seconds. 504: the request took too long.",
    },
}
"""The OpenAPI entries of the errors of OpenAI's routes."""


def refused(field: str, message: str) -> RequestValidationError:
    """The error of a form field whose value cannot be honoured."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": message}])


def error_object(problem: Problem) -> ErrorObject:
    """The error object of a problem; of several wrong fields it names the first."""
    param, code, message = None, problem.code, problem.detail
    if code in ("model_not_found", "model_not_installed"):
        param = "model"
    if not isinstance(message, str):
        first = message[0]
        # loc begins with body, query or path; for a body that is no form there is nothing after it.
        place = first["loc"][1:]
        param = str(place[0]) if place else None
        code = _CODES.get(first["type"], "invalid_value")
        message = f"{param}: {first['msg']}" if param else str(first["msg"])
    code = _ONE_KEY_CODE.get(code, code)
    return {"message": message, "type": _type(problem.status), "param": param, "code": code}


def render_error(problem: Problem) -> Response:
    """The answer to a problem on OpenAI's routes."""
    status = _STATUS_OF_CODE.get(problem.code) or _STATUS.get(problem.status, problem.status)
    body: OpenAIErrorBody = {"error": error_object(problem)}
    return JSONResponse(body, status, headers=problem.headers)


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
