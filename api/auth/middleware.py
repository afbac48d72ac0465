"""API keys: every route that is not open needs one, within the limits of that key."""

import contextlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from api import index
from api.auth.client_secrets import PREFIX, Grant, InvalidSecret, expired, read
from api.auth.key_file import Key, KeyFile, covers
from api.auth.key_limits import KeyLimits, LimitReached
from api.errors import ErrorShapes, Problem, retry_after

OPEN_ROUTES = ("/health", "/ready", "/is_alive", "/api/health", "/docs", "/openapi.json")
"""Paths that need no key, and what lies below them: probes and the pages about the API."""

SUBPROTOCOL = "openai-insecure-api-key."
"""How OpenAI's realtime clients in browsers send the key: as a sub-protocol of this prefix."""

_SCHEMES = (b"bearer", b"token")


class KeyCheck:
    """ASGI middleware that admits requests and sockets with a key, within its limits.

    The key comes as ``X-API-Key``, as ``Authorization: Bearer`` or ``Token``, and on sockets also
    as ``?token=`` or as a sub-protocol; the first of them counts. All of them are removed from the
    scope: neither the app nor the log of the server sees a key. A client secret comes in the same
    ways and counts for the limits of its key.

    Without a key 401, with one that is unknown or not for this route 403, beyond its limits 429,
    rendered by ``shapes``; a socket is rejected before its upgrade. Without a key file all are
    admitted that bring no client secret, or a valid one.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyFile | None, limits: KeyLimits, shapes: ErrorShapes
    ) -> None:
        self.app = app
        self.keys = keys
        self.limits = limits
        self.shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        presented = _take_key(scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        problem: Problem | None = None
        async with AsyncExitStack() as held:
            if not _is_open(scope, path):
                problem = await self._admit(presented, scope, path, held)
            if problem is None:
                await self.app(scope, receive, send)
                return
        answer = self.shapes.render(scope, problem)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(answer)
        else:
            await answer(scope, receive, send)

    async def _admit(
        self, presented: bytes, scope: Scope, path: str, held: AsyncExitStack
    ) -> Problem | None:
        """Why a request is rejected; None once it holds its place and :func:`caller_of` names it.

        The name is that of the key: a new key of the same name owns the jobs of the old one.
        """
        if not presented and self.keys is not None:
            headers = {"WWW-Authenticate": "Bearer"}
            return Problem(401, "missing_api_key", "This route needs an API key.", headers)
        key, grant = self._find(presented)
        state = scope.setdefault("state", {})
        state["key"], state["grant"] = key, grant
        if grant is not None and (problem := _why_not(grant, scope, path)):
            return problem
        if self.keys is None:
            return None
        if key is None:
            return Problem(403, "invalid_api_key", "The API key is not valid.")
        if not key.opens(path):
            return Problem(403, "route_not_allowed", "The API key is not for this route.")
        try:
            await held.enter_async_context(self.limits.hold(key))
        except LimitReached as reached:
            refusal = reached.refusal
            headers = retry_after(refusal.retry_after_s)
            return Problem(429, refusal.code, refusal.message, headers)
        return None

    def _find(self, presented: bytes) -> tuple[Key | None, Grant | None]:
        """The key that came, or the one that a client secret was issued for."""
        key = self.keys.find(presented) if self.keys is not None else None
        if key is None and presented.startswith(PREFIX.encode()):
            with contextlib.suppress(InvalidSecret):
                return read(presented, self.keys)
        return key, None


def _why_not(grant: Grant, scope: Scope, path: str) -> Problem | None:
    """Why a client secret does not allow this; None if it does."""
    if scope["type"] != "websocket" or path != grant.path:
        message = f"A client secret is for the sockets of {grant.path}."
        return Problem(403, "route_not_allowed", message)
    if expired(grant):
        return Problem(403, "invalid_api_key", "The client secret has expired.")
    origin = next((value for name, value in scope["headers"] if name == b"origin"), b"")
    if grant.origin and origin.decode("latin-1") != grant.origin:
        message = "The client secret is for pages of another origin."
        return Problem(403, "origin_not_allowed", message)
    return None


def key_of(connection: HTTPConnection) -> Key | None:
    """The key that a request or socket came with; None where there are no keys."""
    return getattr(connection.state, "key", None)


def grant_of(connection: HTTPConnection) -> Grant | None:
    """What the client secret of a socket states, where it came with one."""
    return getattr(connection.state, "grant", None)


def caller_of(connection: HTTPConnection) -> str:
    """Name of the key that a request or socket came with; "" where there are no keys."""
    key = key_of(connection)
    return (key.name or key.id) if key is not None else ""


def max_concurrent_of(connection: HTTPConnection) -> int | None:
    """How many requests and streams at once the key allows; None where there is no limit."""
    key = key_of(connection)
    return key.concurrent if key is not None else None


def _is_open(scope: Scope, path: str) -> bool:
    """Whether a request needs no key. A browser asks without one whether it may send another."""
    if scope.get("method") in ("GET", "HEAD") and path in index.PATHS:
        return True
    asks = any(name == b"access-control-request-method" for name, _ in scope["headers"])
    return covers(OPEN_ROUTES, path) or (asks and scope.get("method") == "OPTIONS")


def _take_key(scope: Scope) -> bytes:
    """Remove the key from the scope and return it; b"" if there is none."""
    presented = [_take_header(scope, b"x-api-key")]
    scheme, _, credentials = _take_header(scope, b"authorization").partition(b" ")
    presented.append(credentials.strip() if scheme.lower() in _SCHEMES else b"")
    token = _take_token(scope)
    if scope["type"] == "websocket":
        presented += [token, _take_subprotocol(scope)]
    return next(filter(None, presented), b"")


def _take_header(scope: Scope, name: bytes) -> bytes:
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    scope["headers"] = [(n, value) for n, value in headers if n != name]
    return next((value.strip() for n, value in headers if n == name), b"")


def _take_token(scope: Scope) -> bytes:
    parts = scope.get("query_string", b"").split(b"&")
    scope["query_string"] = b"&".join(p for p in parts if not p.startswith(b"token="))
    found = next((p.removeprefix(b"token=") for p in parts if p.startswith(b"token=")), b"")
    return unquote_to_bytes(found.replace(b"+", b" ")).strip()


def _take_subprotocol(scope: Scope) -> bytes:
    offered: list[str] = scope.get("subprotocols", [])
    kept = [name for name in offered if not name.startswith(SUBPROTOCOL)]
    if kept == offered:
        return b""
    scope["subprotocols"] = kept
    _take_header(scope, b"sec-websocket-protocol")
    if kept:
        scope["headers"].append((b"sec-websocket-protocol", ", ".join(kept).encode("latin-1")))
    found = next(name for name in offered if name.startswith(SUBPROTOCOL))
    return found.removeprefix(SUBPROTOCOL).encode("latin-1")


_REFUSALS = {
    "401": "There is no API key.",
    "403": "The API key is not valid, or not for this route.",
    "429": "The limits of the API key are reached; retry after Retry-After seconds.",
}


def describe_keys(app: FastAPI) -> None:
    """Add the keys to the OpenAPI document, so that the page ``/docs`` can send one."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            schema.setdefault("components", {})["securitySchemes"] = {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            }
            for path, operations in schema["paths"].items():
                if not covers(OPEN_ROUTES, path):
                    for operation in operations.values():
                        _describe(operation)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(operation: dict[str, Any]) -> None:
    operation["security"] = [{"key": []}, {"bearer": []}]
    answers: Mapping[str, Any] = operation["responses"]
    missing = {} if "4XX" in answers else _REFUSALS
    operation["responses"] = {s: {"description": d} for s, d in missing.items()} | dict(answers)
