"""The service of the live tests: the web app on a real socket, with fakes or the demo models."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from api.app import make_app
from api.compat import vosk
from api.live.registry import LiveModels, LiveStreams
from api.live.websocket import SocketPaths
from api.openai import realtime_routes
from api.v1 import live
from configs.catalogue import Catalogue, Family, ModelEntry
from configs.settings import OPENAI_MODELS, IngressSettings, SessionSettings, VoskSocketSettings
from deployments.live.wiring import live_ports
from deployments.runtime.model_access import ModelFiles
from engines.emotion import EmotionEngine
from engines.onnx_asr.local_recognizer import LocalRecognizer
from engines.onnx_asr.offline import OnnxAsrEngine
from engines.onnx_asr.streaming import StreamingEngine
from engines.whisper.engine import WhisperEngine
from speech.live.session_options import LivePorts
from speech.ports import DecodedAudio, EmotionOptions, TranscribeOptions
from speech.transcript import Recognition, Scores, Span
from tests.unit.fake_models import FakeModels
from tests.unit.fake_service import FakeService

STREAMING, UTTERANCES, WHISPER = "demo-vosk-streaming", "demo-vosk", "demo-whisper"
EMOTION, SPEAKERS = "demo-gigaam-emo", "demo-diarization-light"
CATALOGUE = Catalogue.load()
WAIT_S = 60.0
"""More than anything here takes."""

Message = dict[str, Any]


# The demo models


class DemoModels:
    """Transcriber and emotions on the engines of the demo pack, loaded when first asked."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._engines: dict[str, Any] = {}
        self.seconds: list[float] = []

    async def transcribe(
        self, audio: DecodedAudio, options: TranscribeOptions, channel: int | None
    ) -> Recognition:
        self.seconds.append(audio.duration)
        engine = self._engine(str(options.model))
        return await asyncio.to_thread(engine.transcribe, audio.content.mono, options)

    async def classify(
        self, audio: DecodedAudio, spans: Sequence[Span], options: EmotionOptions
    ) -> Sequence[Scores]:
        assert options.model is not None
        clips = [audio.content.mono]
        assert [(s.start, s.end) for s in spans] == [(0.0, audio.duration)]
        return await asyncio.to_thread(self._engine(options.model).classify, clips)

    def _engine(self, model: str) -> Any:
        if model not in self._engines:
            entry = self._files.entry(model)
            self._engines[model] = _engine_of(entry, self._files.locate(entry))
        return self._engines[model]


def _engine_of(entry: ModelEntry, path: Path) -> Any:
    if entry.family == "whisper":
        return WhisperEngine(path, device="cpu", compute_type="auto", threads=1)
    if entry.family == "emotion":
        return EmotionEngine(path, device="cpu", threads=1)
    return OnnxAsrEngine(entry, path, device="cpu")


@cache
def demo_ports() -> LivePorts:
    """Detectors and engines as an ingress replica has them, loaded once for all tests."""
    files = ModelFiles(CATALOGUE, Path("models/hub"), offline=True)
    settings = IngressSettings(default_transcriber=WHISPER, sessions=_sessions())
    models = DemoModels(files)

    def load(model: str) -> StreamingEngine:
        entry = files.entry(model)
        return StreamingEngine(entry, files.locate(entry), device="cpu")

    return replace(
        live_ports(None, settings, files, CATALOGUE, {}, {}, None),
        streaming=LocalRecognizer(load, tick_s=0.0, max_streams=100),
        transcriber=models,
        emotions=models,
    )


# The service


class Graph(FakeService):
    """The graph around the live streams, as the web app sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.catalogue = CATALOGUE
        self.families: set[Family] = {"whisper", "onnx_asr", "emotion"}
        self.default_models = {"transcribe": WHISPER, "emotion": EMOTION}


class LiveService:
    """The live routes, or the ``whole`` web app; ``models`` are the fakes, where there are some."""

    def __init__(
        self,
        ports: LivePorts,
        models: FakeModels | None,
        *,
        whole: bool = False,
        keys_file: str | None = None,
        vosk: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        sessions = _sessions(**settings)
        ingress = IngressSettings(
            default_transcriber=WHISPER,
            sessions=sessions,
            keys_file=keys_file,
            vosk=VoskSocketSettings(**vosk or {}),
        )
        self.graph = graph = Graph()
        self.ports = ports
        self._models = models
        self.counts: asyncio.Queue[int] = asyncio.Queue()
        served = LiveModels(STREAMING, UTTERANCES, WHISPER, SPEAKERS)
        self.streams = LiveStreams(graph, ports, sessions, served, self.counts.put_nowait)
        self.app = _Watched(
            make_app(graph, self.streams, ingress, "1.2.3") if whole else self._sockets(ingress)
        )
        self.port = 0

    def _sockets(self, settings: IngressSettings) -> ASGIApp:
        """The live routes alone; the others take much longer to set up."""
        app = FastAPI(middleware=[Middleware(SocketPaths)])
        app.include_router(live.router(self.streams))
        app.include_router(vosk.router(self.streams, settings.vosk))
        app.include_router(realtime_routes.router(self.streams, dict.fromkeys(OPENAI_MODELS)))
        return app

    @property
    def models(self) -> FakeModels:
        assert self._models is not None
        return self._models

    @asynccontextmanager
    async def connect(
        self, path: str = "/v1/ws", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator["Client"]:
        """A socket to the service; raises as ``websockets`` does when it is refused."""
        uri = f"ws://127.0.0.1:{self.port}{path}"
        patient: dict[str, Any] = {"open_timeout": WAIT_S, "ping_interval": None}
        async with connect(
            uri,
            compression=None,
            max_size=None,
            max_queue=None,
            additional_headers=headers,
            **patient,
        ) as socket:
            yield Client(socket)

    async def idle(self) -> None:
        """Wait until no socket is being served."""
        async with asyncio.timeout(WAIT_S):
            await self.app.idle.wait()

    def assert_free(self) -> None:
        """Nothing is left of any stream."""
        assert self.streams.sessions.count == 0
        assert self.ports.streaming.streams == 0  # type: ignore[union-attr]


@asynccontextmanager
async def serving(models: FakeModels | None = None, **settings: Any) -> AsyncIterator[LiveService]:
    """A service that runs on a port of this machine; at the end nothing may be left of it."""
    before = asyncio.all_tasks()
    service = LiveService(models.ports() if models else demo_ports(), models, **settings)
    config = uvicorn.Config(
        service.app, lifespan="off", log_config=None, access_log=False, ws_ping_interval=None
    )
    config.load()
    state = ServerState()

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(config=config, server_state=state, app_state={})

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        await service.idle()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:  # on their last steps
        _, left = await asyncio.wait(left, timeout=WAIT_S)
    assert not left
    service.assert_free()


class Client:
    """A socket of a client that sends and receives JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, *messages: bytes | str | Message) -> None:
        for message in messages:
            await self._socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def receive(self) -> Message:
        """The next message; raises ConnectionClosed."""
        async with asyncio.timeout(WAIT_S):
            return json.loads(await self._socket.recv())

    async def until(self, **wanted: Any) -> list[Message]:
        """The messages up to the first that has these items."""
        messages = [await self.receive()]
        while not wanted.items() <= messages[-1].items():
            messages.append(await self.receive())
        return messages

    async def rest(self) -> list[Message]:
        """The messages until the server closes."""
        messages = []
        while True:
            try:
                messages.append(await self.receive())
            except ConnectionClosed:
                return messages

    @property
    def closed(self) -> tuple[int | None, str | None]:
        """How the server closed: code and reason."""
        return self._socket.close_code, self._socket.close_reason

    async def close(self, code: int = 1000) -> None:
        """Close the socket with a close code."""
        await self._socket.close(code)

    def drop(self) -> None:
        """Break the connection without a close frame."""
        self._socket.transport.abort()


class _Watched:
    """An app that reports when it serves no socket; ``extensions`` are those of its server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._sockets = 0
        self.extensions: dict[str, Any] = {}
        self.idle = asyncio.Event()
        self.idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        scope["extensions"] = {**scope.get("extensions", {}), **self.extensions}
        self._sockets += 1
        self.idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._sockets -= 1
            if not self._sockets:
                self.idle.set()


def _sessions(**settings: Any) -> SessionSettings:
    return SessionSettings(**({"speaker_model": SPEAKERS} | settings))
