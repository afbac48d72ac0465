"""What a browser gets at the root: a page with links, and an icon."""

from html import escape
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import HTMLResponse, JSONResponse, Response

PATHS = ("/", "/favicon.ico")

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>speechgraph</title>
<link rel="icon" href="favicon.ico">
<h1>speechgraph {version}</h1>
<p>Transcribe, diarize and read emotions in speech, over HTTP and WebSockets.
<ul>
<li><a href="docs">API of this service</a>, to read and to try
<li><a href="openapi.json">the same for programs</a>
<li><a href="v1/models">models</a>
<li><a href="health">health</a>, <a href="ready">readiness</a>
</ul>
"""
_FOR_PROGRAMS = {
    "error": True,
    "data": "No_service_selected",
    "comment": "try_addr: http://<host>:<port>/docs",
}
"""What server B answers at its root."""
_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">\
<path d="M2 6v4M5 3v10M8 5v6M11 1v14M14 6v4" stroke="#246" stroke-width="2"/></svg>"""


def router(version: str) -> APIRouter:
    """The routes; they are no part of the API."""
    routes = APIRouter(include_in_schema=False)
    page = _PAGE.format(version=escape(version))

    @routes.get("/")
    async def index(accept: Annotated[str, Header()] = "") -> Response:
        return HTMLResponse(page) if "text/html" in accept else JSONResponse(_FOR_PROGRAMS)

    @routes.get("/favicon.ico")
    async def icon() -> Response:
        return Response(_ICON, media_type="image/svg+xml")

    return routes
