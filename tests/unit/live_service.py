"""The service of the live tests: the web app on a real socket, with fakes or the demo models.

The fakes hear numbers: a "word" is a stretch of samples that all have the value of its number, so
every test knows what is to be recognised, sample by sample, and nothing depends on a model.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from api.app import make_app
from api.compat import vosk
from api.live.registry import LiveModels, LiveStreams
from api.openai import realtime
from api.v1 import live
from configs.catalogue import Catalogue, Family, ModelEntry
from configs.settings import OPENAI_MODELS, IngressSettings, SessionSettings
from deployments.live.wiring import live_ports
from deployments.runtime.model_access import ModelFiles
from engines.emotion import EmotionEngine
from engines.vosk.local_recognizer import LocalRecognizer
from engines.vosk.offline import VoskEngine
from engines.vosk.streaming import StreamingEngine
from engines.whisper.engine import WhisperEngine
from speech.audio import SAMPLE_RATE, Samples
from speech.live.endpointing import EndpointOptions
from speech.live.session_options import LivePorts
from speech.media.segmentation import WINDOW_SAMPLES
from speech.ports import DecodedAudio, EmotionOptions, TranscribeOptions
from speech.transcript import Recognition, Scores, Segment, Span, Word
from tests.unit.fake_service import FakeService

STREAMING, UTTERANCES, WHISPER = "demo-vosk-streaming", "demo-vosk", "demo-whisper"
EMOTION, SPEAKERS = "demo-gigaam-emo", "demo-diarization-light"
CATALOGUE = Catalogue.load()
WAIT_S = 60.0
"""More than anything here takes."""

Message = dict[str, Any]
FULL_SCALE = 32768
WHISPERED = 32_000
"""A word that is no speech to the voice activity detector of the fakes."""


# Audio


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def say(*numbers: int, word_s: float = 0.3, gap_s: float = 0.1) -> Samples:
    """Words that the fakes recognise, each with a gap behind it that ends no utterance."""
    words = [np.full(round(word_s * SAMPLE_RATE), n / FULL_SCALE, np.float32) for n in numbers]
    return np.concatenate([part for word in words for part in (word, silence(gap_s))])


def pcm(*parts: Samples) -> bytes:
    return np.round(np.concatenate(parts) * (FULL_SCALE - 1)).astype("<i2").tobytes()


def exact(*parts: Samples) -> bytes:
    """PCM16 in which the words of the fakes keep their value."""
    return (np.concatenate(parts) * FULL_SCALE).astype("<i2").tobytes()


def frames(data: bytes, size: int) -> Iterator[bytes]:
    return (data[first : first + size] for first in range(0, len(data), size))


def numbers_in(samples: Samples) -> tuple[Word, ...]:
    """The words of the fakes, also the one that is being spoken."""
    values = np.round(samples * FULL_SCALE).astype(int)
    edges = np.flatnonzero(np.diff(values, prepend=0, append=0))
    return tuple(
        Word(f" {values[a]}", a / SAMPLE_RATE, b / SAMPLE_RATE)
        for a, b in itertools.pairwise(edges)
        if values[a]
    )


# The fakes


class Gate:
    """Open at first; who comes to it while it is shut waits."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def __call__(self) -> None:
        self.reached.set()
        await self._open.wait()


class Ears:
    """All ports in one, and what they were asked.

    ``stumbles``: an utterance recogniser that takes a word which is not over yet for another.
    ``turns``: how many turns of the loop the voice activity detector takes for a block.
    """

    def __init__(self) -> None:
        self.streams = 0
        self.opened: list[tuple[str, str | None]] = []
        self.endpointing: list[EndpointOptions] = []
        self.asked: list[TranscribeOptions] = []
        self.heard: list[Samples] = []
        self.failure: Exception | None = None
        self.stumbles = False
        self.turns = 0
        self.opening, self.activity, self.feeding, self.transcribing = (Gate() for _ in range(4))

    def ports(self) -> LivePorts:
        return LivePorts(self.voice_activity, self, self, self, None)

    def voice_activity(self, options: EndpointOptions) -> "Loudness":
        self.endpointing.append(options)
        return Loudness(self)

    async def open(self, model: str, hotwords: str | None = None) -> "EarStream":
        await self.opening()
        self.opened.append((model, hotwords))
        self.streams += 1
        return EarStream(self)

    async def transcribe(
        self, audio: DecodedAudio, options: TranscribeOptions, channel: int | None
    ) -> Recognition:
        samples = audio.content.mono
        self.asked.append(options)
        self.heard.append(samples)
        await self.transcribing()
        if self.failure is not None:
            raise self.failure
        words = numbers_in(samples)
        if self.stumbles and words and words[-1].end == audio.duration:
            words = (*words[:-1], replace(words[-1], text=f" hm{len(self.asked)}"))
        return Recognition((Segment(0.0, audio.duration, "", words),))

    async def classify(
        self, audio: DecodedAudio, spans: Sequence[Span], options: EmotionOptions
    ) -> Sequence[Scores]:
        return [{"calm": 1.0} for _ in spans]

    @property
    def longest_s(self) -> float:
        """Of what was handed to the utterance recogniser at once."""
        return max(len(samples) for samples in self.heard) / SAMPLE_RATE


class Loudness:
    """Somebody speaks where a window is not silent, nor whispered."""

    def __init__(self, ears: Ears) -> None:
        self._ears = ears
        self._rest = silence(0)

    async def feed(self, samples: Samples) -> NDArray[np.float32]:
        await self._ears.activity()
        for _ in range(self._ears.turns):
            await asyncio.sleep(0)
        joined = np.concatenate((self._rest, samples))
        whole = len(joined) - len(joined) % WINDOW_SAMPLES
        self._rest = joined[whole:]
        windows = joined[:whole].reshape(-1, WINDOW_SAMPLES)
        speech = ((windows > 0) & (windows < WHISPERED / FULL_SCALE)).any(axis=1)
        return np.where(speech, np.float32(0.99), np.float32(0.01))


class EarStream:
    """A frame-synchronous recogniser of one stream."""

    def __init__(self, ears: Ears) -> None:
        self._ears = ears
        self._heard = silence(0)

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        await self._ears.feeding()
        self._heard = np.concatenate((self._heard, samples))
        return numbers_in(self._heard)

    async def finish(self, trailing_silence_s: float = 0.0) -> tuple[Word, ...]:
        heard, self._heard = self._heard, silence(0)
        return numbers_in(heard)

    async def close(self) -> None:
        self._ears.streams -= 1


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
    return VoskEngine(entry, path, device="cpu")


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
        live_ports(None, settings, files, CATALOGUE, {}, {}),
        streaming=LocalRecognizer(load, tick_s=0.0, max_streams=100),
        transcriber=models,
        emotions=models,
    )


# The service


class Graph(FakeService):
    """What the web app is told about the graph around the live streams."""

    def __init__(self) -> None:
        super().__init__()
        self.catalogue = CATALOGUE
        self.families: set[Family] = {"whisper", "vosk", "emotion"}
        self.default_models = {"transcribe": WHISPER, "emotion": EMOTION}


class LiveService:
    """The live routes, or the ``whole`` web app; no ``ears`` where the demo models hear."""

    def __init__(
        self,
        ports: LivePorts,
        ears: Ears | None,
        *,
        whole: bool = False,
        keys_file: str | None = None,
        **settings: Any,
    ) -> None:
        sessions = _sessions(**settings)
        graph = Graph()
        self.ports = ports
        self._ears = ears
        self.counts: asyncio.Queue[int] = asyncio.Queue()
        models = LiveModels(STREAMING, UTTERANCES, WHISPER, SPEAKERS)
        self.streams = LiveStreams(graph, ports, sessions, models, self.counts.put_nowait)
        self.app = _Watched(self._whole(graph, sessions, keys_file) if whole else self._sockets())
        self.port = 0

    def _sockets(self) -> ASGIApp:
        """The live routes alone; the others take much longer to set up."""
        app = FastAPI()
        app.include_router(live.router(self.streams))
        app.include_router(vosk.router(self.streams))
        app.include_router(realtime.router(self.streams, dict.fromkeys(OPENAI_MODELS)))
        return app

    def _whole(self, graph: "Graph", sessions: SessionSettings, keys_file: str | None) -> ASGIApp:
        settings = IngressSettings(
            default_transcriber=WHISPER, sessions=sessions, keys_file=keys_file
        )
        return make_app(graph, self.streams, settings, "1.2.3")

    @property
    def ears(self) -> Ears:
        assert self._ears is not None
        return self._ears

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
async def serving(ears: Ears | None = None, **settings: Any) -> AsyncIterator[LiveService]:
    """A service that runs on a port of this machine; at the end nothing may be left of it."""
    before = asyncio.all_tasks()
    service = LiveService(ears.ports() if ears else demo_ports(), ears, **settings)
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
    """A socket of a client that speaks JSON."""

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

    def drop(self) -> None:
        """Be gone without a word."""
        self._socket.transport.abort()


class _Watched:
    """An app that says when it serves no socket; ``extensions`` are those of its server."""

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
