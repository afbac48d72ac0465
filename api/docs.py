"""The OpenAPI document, completed: forms that ``/docs`` can send as they are, and the sockets."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIWebSocketRoute

TAG = "sockets"
SOCKETS: Mapping[str, str] = {
    "/v1/ws": 'native streams, after `{"type": "start"}`, and those of the v1 API',
    "/v1/realtime": "OpenAI's realtime transcription",
    "/ws": "sherpa-onnx's server: PCM of 16 kHz, an answer to each piece",
    "/vosk": "vosk-server: `config`, then PCM, an answer to each frame",
    "/asr/{language}": "vosk-server, by language",
    "/": "vosk-server, at the root",
}
"""What each socket speaks; the other kinds of routes describe themselves."""


def describe_sockets(routers: Iterable[APIRouter]) -> list[dict[str, Any]]:
    """The tag of the OpenAPI document that lists the sockets: OpenAPI itself has no place."""
    paths = [r.path for o in routers for r in o.routes if isinstance(r, APIWebSocketRoute)]
    rows = "\n".join(f"| `WS {path}` | {SOCKETS.get(path, '')} |" for path in dict.fromkeys(paths))
    text = (
        "Live streams are WebSockets, which this page cannot try. Each is described in "
        "`docs/streaming.md` and `docs/api/realtime.md`; back to the [models](v1/models) and the "
        f"[start](./).\n\n| socket | protocol |\n|---|---|\n{rows}"
    )
    return [{"name": TAG, "description": text}]


def complete_forms(app: FastAPI) -> None:
    """Give every optional field of a form an example that the route takes.

    Without one the page ``/docs`` sends a made-up value. An empty text means that a field is
    absent.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            schemas = schema.get("components", {}).get("schemas", {})
            for operations in schema["paths"].values():
                for operation in operations.values():
                    _complete(operation, schemas)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> None:
    form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data")
    if form is None:
        return
    name = form["schema"].get("$ref", "").rpartition("/")[2]
    model = schemas.get(name, form["schema"])
    for field, described in model.get("properties", {}).items():
        if _is_file(described):
            described["format"] = "binary"  # without it the page offers a text field
        elif field not in model.get("required", ()):
            example = next(iter(described.get("examples", ())), described.get("default"))
            if example is None:
                # The page cannot show the field where the example of a list is a text.
                example = [] if _is_list(described) else ""
            described["example"] = example


def _is_list(described: Mapping[str, Any]) -> bool:
    return any(kind.get("type") == "array" for kind in (described, *described.get("anyOf", ())))


def _is_file(described: Mapping[str, Any]) -> bool:
    kinds = [described, *described.get("anyOf", ())]
    return any(kind.get("contentMediaType") == "application/octet-stream" for kind in kinds)
