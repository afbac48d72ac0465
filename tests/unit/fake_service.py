"""A service that records what the dialects ask of it, and a client of its web app."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from api.app import make_app
from api.live.registry import LiveModels, LiveStreams
from api.service import DeploymentState
from configs.catalogue import Catalogue, Family
from configs.settings import IngressSettings
from infra.fetch import Fetcher
from speech.jobs.desk import JobDesk
from speech.live.endpointing import EndpointOptions
from speech.live.session_options import LivePorts
from speech.pipeline import ProcessOptions, Task
from speech.ports import Transcriber, VoiceActivity
from speech.transcript import Segment, Transcript


def model(id: str, family: Family, **fields: Any) -> dict[str, Any]:
    entry = {
        "id": id,
        "family": family,
        "format": "ctranslate2",
        "source": {"path": id},
        "licence": "Apache-2.0",
        "memory_mb": 1,
    }
    return entry | fields


CATALOGUE = Catalogue.model_validate(
    {
        "models": [
            model(
                "large-v3-turbo",
                "whisper",
                aliases=["whisper-1", "openai/turbo"],
                source={"repo": "Systran/faster-whisper-turbo"},
                translation=True,  # unlike the real one, as most tests use it
            ),
            model("small", "whisper", languages=["ru", "en"], translation=True),
            model("vosk-ru", "onnx_asr"),
            model("emo", "emotion"),
            model("other-emo", "emotion"),
            model("pyannote", "diarization"),
            model("other-pyannote", "diarization"),
        ]
    }
)


class FakeService:
    """Answers every request with ``answer``: a transcript, an error, or a function to await."""

    def __init__(self) -> None:
        self.catalogue = CATALOGUE
        self.families: set[Family] = {"whisper", "emotion", "diarization"}
        self.default_models: dict[Task, str] = {
            "transcribe": "large-v3-turbo",
            "diarization": "pyannote",
            "emotion": "emo",
        }
        self.answer: Transcript | Exception | Callable[[], Awaitable[Transcript]] = Transcript(1.0)
        self.calls: list[tuple[bytes, ProcessOptions]] = []
        self.before_segment: Callable[[int], Awaitable[None]] = AsyncMock()
        """Awaited before each segment of a stream, with its number."""
        self.deployments = {"Decoder": True, "Whisper": True}
        self.may_have_no_replicas: set[str] = set()
        self.loaded: list[dict[str, Any]] = []
        self.present: set[str] = {entry.id for entry in CATALOGUE.models}

    async def process(self, data: bytes, options: ProcessOptions) -> Transcript:
        self.calls.append((data, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if isinstance(self.answer, Transcript) else await self.answer()

    async def stream(
        self, data: bytes, options: ProcessOptions
    ) -> AsyncGenerator[Segment | Transcript, None]:
        transcript = await self.process(data, options)
        for number, segment in enumerate(transcript.segments or ()):
            await self.before_segment(number)
            yield segment
        yield transcript

    async def deployment_states(self) -> dict[str, DeploymentState]:
        return {
            name: DeploymentState(running, name not in self.may_have_no_replicas)
            for name, running in self.deployments.items()
        }

    async def present_models(self) -> set[str]:
        return self.present

    async def cache_stats(self, *, required_only: bool = False) -> list[dict[str, Any]]:
        return self.loaded

    @property
    def options(self) -> ProcessOptions:
        """What the only request asked for."""
        ((_, options),) = self.calls
        return options


def app_of(
    service: FakeService,
    jobs: JobDesk | None = None,
    *,
    fetcher: Fetcher | None = None,
    **limits: Any,
) -> FastAPI:
    settings = IngressSettings(default_transcriber="large-v3-turbo", **limits)
    streams = no_streams(service, settings)
    return make_app(service, streams, settings, "1.2.3", job_desk=jobs, fetcher=fetcher)


def no_streams(service: FakeService, settings: IngressSettings) -> LiveStreams:
    """Live streams of a service that has no model for them."""

    def no_voice_activity(options: EndpointOptions) -> VoiceActivity:
        raise AssertionError("no stream can begin")

    ports = LivePorts(no_voice_activity, None, AsyncMock(spec=Transcriber))
    return LiveStreams(service, ports, settings.sessions, LiveModels(None, None, None))


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://speech")


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """The address of the app on a free port."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        await serving
