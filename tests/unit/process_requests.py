"""Requests to ``POST /v1/process`` of an app."""

import json
from typing import Any

import httpx


async def ask(client: httpx.AsyncClient, request: Any, audio: bytes = b"RIFF") -> httpx.Response:
    text = request if isinstance(request, str) else json.dumps(request)
    return await client.post(
        "/v1/process", files={"audio": ("speech.wav", audio)}, data={"request_json": text}
    )


async def ask_tra(client: httpx.AsyncClient, **tra: Any) -> httpx.Response:
    return await ask(client, {"settings": {"tra": tra}})
