"""A server of the live protocol that drops connections at given moments."""

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from clients.stream_client import Event

RATE = 1_000
"""Small, so that the samples of half a minute can be numbered."""

WAIT_S = 20.0
"""Longer than any step of these tests."""


def ramp(seconds: float) -> bytes:
    """Audio in which each sample is its own number."""
    return np.arange(round(seconds * RATE), dtype="<i2").tobytes()


def expected_finals(seconds: float, cuts: Sequence[float] = ()) -> list[str]:
    """The texts of the finals of ``ramp``: an utterance per second, cut where it was finalized."""
    borders = sorted({0.0, *map(float, range(int(seconds) + 1)), *cuts, seconds})
    samples = [round(border * RATE) for border in borders]
    return [f"{a}-{b - 1}" for a, b in itertools.pairwise(samples)]


Serve = Callable[[ServerConnection], Awaitable[None]]


class Dropped(Exception):
    """Raised where the server drops the connection."""


@dataclass
class ServedStream:
    """A stream in the server; the text of an utterance is its first and last sample."""

    rate: int
    position: int
    seq: int
    utterances: int = 0
    labels_speakers: bool = False
    begin: int = -1
    samples: list[int] = field(default_factory=list)
    log: list[Event] = field(default_factory=list)

    def final(self) -> None:
        if self.samples:
            self.seq += 1
            start = (self.position - len(self.samples)) / self.rate
            text = f"{self.samples[0]}-{self.samples[-1]}"
            event = {"type": "final", "seq": self.seq, "start": start, "text": text}
            event |= {"end": self.position / self.rate, "words": [], "utterance": self.utterances}
            if self.labels_speakers:
                label = f"SPEAKER_{self.utterances % 2:02d}"
                event |= {"speaker": label, "voice": f"{label} of {text}"}
            self.log.append(event)
            self.utterances += 1
            self.samples = []


class Scripted:
    """Serves live streams; at each moment of ``drops``, in order, it drops the connection once.

    ``keeps``: a session survives its socket. ``closes_with``: a close code, None to abort.
    """

    def __init__(self, *drops: str, keeps: bool = True, closes_with: int | None = None) -> None:
        self.drops = list(drops)
        self.keeps = keeps
        self.closes_with = closes_with
        self.rejections: list[Response] = []
        self.key: str | None = None
        self.sends_done = False
        self.utterance_s = 1.0
        self.processes = asyncio.Event()
        self.processes.set()
        self.starts: list[Event] = []
        self.controls: list[str] = []
        self.close_codes: list[int | None] = []
        self.ahead = 0
        self.received = 0
        self.sessions: dict[str, ServedStream] = {}

    async def moment(self, name: str) -> None:
        if self.drops and self.drops[0] == name:
            del self.drops[0]
            raise Dropped

    def reject(self, status: HTTPStatus, text: str, **headers: str) -> None:
        """Answer one more handshake with ``status``."""
        fields = Headers({name.replace("_", "-"): value for name, value in headers.items()})
        self.rejections.append(Response(status, status.phrase, fields, text.encode()))

    async def admit(self, _: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("X-API-Key") != self.key:
            self.reject(HTTPStatus.FORBIDDEN, "no such key")
        return self.rejections.pop(0) if self.rejections else None

    async def __call__(self, socket: ServerConnection) -> None:
        try:
            await self.serve(socket)
        except Dropped:
            if self.closes_with is None:
                socket.transport.abort()
            else:
                if self.sends_done:
                    await socket.send(json.dumps({"type": "done"}))
                await socket.close(self.closes_with)
        except ConnectionClosed as closed:
            self.close_codes.append(closed.rcvd.code if closed.rcvd else None)

    async def serve(self, socket: ServerConnection) -> None:
        start = json.loads(await socket.recv())
        self.starts.append(start)
        await self.moment("ready")
        resume = start.get("resume", {})
        served = self.sessions.get(resume.get("session")) if self.keeps else None
        resumed = served is not None
        if served is None:
            rate = start["sample_rate"]
            position = round(resume.get("from_s", 0.0) * rate)
            counts = (resume.get("seq", 0), resume.get("utterances", 0))
            served = ServedStream(
                rate, position, *counts, labels_speakers=start.get("speaker", False)
            )
        name = str(uuid.uuid4())
        self.sessions[name] = served
        ready = {"type": "ready", "session": name, "resumed": resumed}
        ready |= {"audio_from_s": served.position / served.rate, "window_s": 2.0}
        await socket.send(json.dumps(ready))
        for event in served.log:  # all finals, also those that the client has
            await socket.send(json.dumps(event))
        await self.converse(socket, served)

    async def converse(self, socket: ServerConnection, served: ServedStream) -> None:
        credit = served.position
        on_this_socket = 0
        while True:
            message = await socket.recv()
            if isinstance(message, bytes):
                self.received += len(message)
                on_this_socket += len(message)
                self.ahead = max(self.ahead, served.position + len(message) // 2 - credit)
                for sample in np.frombuffer(message, "<i2").tolist():
                    served.samples.append(sample)
                    served.position += 1
                    if served.position % round(self.utterance_s * served.rate) == 0:
                        served.final()
                        await self.send_final(socket, served)
                await self.moment(f"{on_this_socket // 2} samples")
                partial = {"type": "partial", "text": str(served.position)}
                await socket.send(json.dumps(partial))
                if self.processes.is_set():
                    credit = served.position
                    progress = {"type": "progress", "processed_s": credit / served.rate}
                    await socket.send(json.dumps(progress))
                continue
            kind = json.loads(message)["type"]
            self.controls.append(kind)
            await self.moment(kind)
            if kind != "keepalive":
                served.final()
                await self.send_final(socket, served)
            if kind == "end":
                await self.moment("done")
                await socket.send(json.dumps({"type": "done"}))
                return

    async def send_final(self, socket: ServerConnection, served: ServedStream) -> None:
        """Send the final that was just added, if one was."""
        if served.log and served.log[-1]["seq"] == served.seq and not served.samples:
            await self.moment(f"before {served.seq}")
            await socket.send(json.dumps(served.log[-1]))
            await self.moment(f"after {served.seq}")


@asynccontextmanager
async def serving(server: Scripted | Serve, port: int = 0) -> AsyncIterator[str]:
    """The URL of a server."""
    admit = server.admit if isinstance(server, Scripted) else None
    async with serve(
        server, "127.0.0.1", port, process_request=admit, close_timeout=1, max_queue=None
    ) as listener:
        port = next(iter(listener.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/v1/ws"


def texts(events: Sequence[Event]) -> list[str]:
    return [event["text"] for event in events if event["type"] == "final"]
