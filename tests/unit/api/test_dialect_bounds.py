"""The bounds that every dialect shares: bytes while they are read, seconds, and names of files."""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from speech.audio import Audio
from speech.errors import AudioTooLong
from speech.pipeline import ProcessOptions, SpeechGraph
from speech.ports import DecodedAudio
from tests.unit.fake_service import FakeService, app_of, client_of

MB = 1024**2


def uploads(app: FastAPI) -> list[tuple[str, str]]:
    """Each route that takes a file, and the name of its part."""
    schema = app.openapi()
    found = []
    for path, operations in schema["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        form = content.get("multipart/form-data", {}).get("schema", {})
        model = schema["components"]["schemas"].get(form.get("$ref", "").split("/")[-1], {})
        parts = model.get("properties", {})
        found += [
            (path, name)
            for name, part in parts.items()
            if part.get("contentMediaType") == "application/octet-stream"
        ]
    return found


UPLOADS = uploads(app_of(FakeService()))


def test_the_routes_that_take_files_are_known() -> None:
    assert {("/v1/process", "audio"), ("/v1/audio/transcriptions", "file")} <= set(UPLOADS)


@pytest.mark.parametrize(("path", "part"), UPLOADS)
@pytest.mark.parametrize("declared", [True, False])
async def test_an_upload_is_cut_at_the_bound_on_every_route(
    path: str, part: str, declared: bool
) -> None:
    """A body without end, of which no more than the bound is asked for."""
    service = FakeService()
    app = app_of(service, max_upload_bytes=2 * MB, max_openai_upload_bytes=2 * MB)
    head = f'--x\r\nContent-Disposition: form-data; name="{part}"; filename="a"\r\n\r\n'.encode()
    headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    if declared:
        headers.append((b"content-length", str(3 * MB).encode()))
    taken: list[int] = []
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        body = bytes(MB // 4) if taken else head
        taken.append(len(body))
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    await app({**scope, "headers": headers}, receive, send)
    assert sent[0]["status"] == 413
    assert sum(taken) <= (0 if declared else 2 * MB + MB // 4)
    assert service.calls == []


# ---------------------------------------------------------------- names of files


HOSTILE = [
    "../../speechgraph-name-x",
    "/tmp/speechgraph-name-x",
    "..\\speechgraph-name-x",
    "a\\0/x",
]


@pytest.fixture(scope="module")
def touched() -> Iterator[list[str]]:
    """The path of everything that Python opens, makes, moves or removes meanwhile."""
    paths: list[str] = []
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching and event.split(".")[0] in ("open", "os", "shutil", "tempfile"):
            paths.extend(os.fsdecode(a) for a in args if isinstance(a, str | bytes))

    sys.addaudithook(hook)
    yield paths
    watching = False  # a hook cannot be taken away


@pytest.mark.parametrize(("path", "part"), UPLOADS)
@pytest.mark.parametrize("name", HOSTILE)
async def test_the_name_of_a_file_is_never_a_path(
    path: str, part: str, name: str, touched: list[str]
) -> None:
    """Large enough to be spooled to disk, under a name that is not the client's."""
    touched.clear()
    service = FakeService()
    form = {"request_json": '{"settings":{}}', "model": "whisper-1"}
    async with client_of(app_of(service)) as client:
        await client.post(path, files={part: (name, bytes(2 * MB))}, data=form)
    assert len(service.calls) == 1
    assert touched, "the upload is spooled to disk"
    assert not any("speechgraph-name" in path for path in touched)


# ---------------------------------------------------------------- seconds


class Ported:
    """A decoder of audio that has two seconds, and models that must not be asked."""

    async def decode(self, data: bytes, keep_channels: bool, speedup: float) -> DecodedAudio:
        audio = Audio(np.zeros(32_000, np.float32))
        return DecodedAudio(audio, audio.duration)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("a model was asked")


async def test_audio_beyond_the_seconds_of_its_dialect_reaches_no_model() -> None:
    port: Any = Ported()
    graph = SpeechGraph(port, port, port, port)
    options = ProcessOptions(frozenset({"transcribe"}), max_seconds=1.9)
    with pytest.raises(AudioTooLong, match=re.escape("longer than 1.9 seconds")):
        await graph.process(b"x", options)
    with pytest.raises(AudioTooLong):
        await anext(graph.stream(b"x", options))
    with pytest.raises(AssertionError, match="a model was asked"):
        await graph.process(b"x", replace(options, max_seconds=2.0))


async def test_each_dialect_has_seconds_of_its_own() -> None:
    service = FakeService()
    app = app_of(service, max_seconds={"openai": 1500.0})
    async with client_of(app) as client:
        file = ("a", b"x")
        await client.post(
            "/v1/process", files={"audio": file}, data={"request_json": '{"settings":{}}'}
        )
        openai = {"model": "whisper-1"}
        await client.post("/v1/audio/transcriptions", files={"file": file}, data=openai)
        stream = {**openai, "stream": "true"}
        await client.post("/v1/audio/transcriptions", files={"file": file}, data=stream)
        await client.post("/v1/audio/diarization", files={"file": file}, data=openai)
        service.answer = AudioTooLong("the audio is longer than 1500 seconds")
        refused = await client.post("/v1/audio/transcriptions", files={"file": file}, data=openai)
    assert [options.max_seconds for _, options in service.calls] == [None, *[1500.0] * 4]
    assert refused.status_code == 413
    assert json.loads(refused.text)["error"]["code"] == "audio_too_long"
