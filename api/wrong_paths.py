"""The answer to paths that no route has: it states the path where a base URL was mistaken."""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from api.errors import ErrorShapes, Problem

MAX_PARTS = 16
"""Longer paths are not compared with the routes."""


class WrongPath:
    """ASGI app that answers 404, for the router's ``default``.

    Where ``routes`` have the path without its first parts, or with ``/v1`` before it, the error
    states that path, in the shape that its dialect has.
    """

    def __init__(self, routes: Sequence[BaseRoute], shapes: ErrorShapes) -> None:
        self._routes = routes
        self._shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        right = self._right_path(scope, path)
        problem = Problem(404, "not_found", "Not Found")
        if right is not None:
            advice = f"There is no {path[:200]!r} here: the URL should end in '{right}'."
            problem = Problem(404, "not_found", advice)
            scope = _at(scope, right)
        answer = self._shapes.render(scope, problem)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(answer)
        else:
            await answer(scope, receive, send)

    def _right_path(self, scope: Scope, path: str) -> str | None:
        parts = [part for part in path.split("/") if part]
        if len(parts) > MAX_PARTS:
            return None
        for first in range(len(parts)):
            for prefix in ("", "/v1"):
                candidate = "/".join((prefix, *parts[first:]))
                there = _at(scope, candidate)
                if any(route.matches(there)[0] is not Match.NONE for route in self._routes):
                    return candidate
        return None


def _at(scope: Scope, path: str) -> Scope:
    return {**scope, "path": scope.get("root_path", "") + path}
