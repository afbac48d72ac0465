"""The live client against a server that follows the protocol, until it is told to drop."""

import asyncio
import itertools
import json
import os
import sys
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from clients import live
from clients.live import ConnectionLost, Event, LiveError, LiveSession, ServerBusy, line
from tests.unit.sound_files import encode, tone

RATE = 1_000
"""Small, so that the samples of half a minute can be numbered."""

WAIT_S = 20.0
"""More than anything here takes."""


def ramp(seconds: float) -> bytes:
    """Audio in which each sample is its own number."""
    return np.arange(round(seconds * RATE), dtype="<i2").tobytes()


def spoken(seconds: float, cuts: Sequence[float] = ()) -> list[str]:
    """The finals of ``ramp``: utterances of a second, cut where they were finalized."""
    borders = sorted({0.0, *map(float, range(int(seconds) + 1)), *cuts, seconds})
    samples = [round(border * RATE) for border in borders]
    return [f"{a}-{b - 1}" for a, b in itertools.pairwise(samples)]


class Dropped(Exception):
    """The server cuts a connection."""


@dataclass
class Heard:
    """A stream at the server; the text of an utterance is its first and last sample."""

    rate: int
    position: int
    seq: int
    utterances: int = 0
    knows_voices: bool = False
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
            if self.knows_voices:
                label = f"SPEAKER_{self.utterances % 2:02d}"
                event |= {"speaker": label, "voice": f"{label} of {text}"}
            self.log.append(event)
            self.utterances += 1
            self.samples = []


class Scripted:
    """Serves live streams; ``drops`` are the moments at which it cuts, each once and in order.

    ``keeps``: a session survives its socket. ``closes_with``: a close code, None for no goodbye.
    """

    def __init__(self, *drops: str, keeps: bool = True, closes_with: int | None = None) -> None:
        self.drops = list(drops)
        self.keeps = keeps
        self.closes_with = closes_with
        self.refuses: list[Response] = []
        self.key: str | None = None
        self.says_done = False
        self.utterance_s = 1.0
        self.works = asyncio.Event()
        self.works.set()
        self.starts: list[Event] = []
        self.controls: list[str] = []
        self.close_codes: list[int | None] = []
        self.ahead = 0
        self.received = 0
        self.sessions: dict[str, Heard] = {}

    async def moment(self, name: str) -> None:
        if self.drops and self.drops[0] == name:
            del self.drops[0]
            raise Dropped

    def refuse(self, status: HTTPStatus, text: str, **headers: str) -> None:
        """Answer one more handshake with ``status``."""
        fields = Headers({name.replace("_", "-"): value for name, value in headers.items()})
        self.refuses.append(Response(status, status.phrase, fields, text.encode()))

    async def admit(self, _: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("X-API-Key") != self.key:
            self.refuse(HTTPStatus.FORBIDDEN, "no such key")
        return self.refuses.pop(0) if self.refuses else None

    async def __call__(self, socket: ServerConnection) -> None:
        try:
            await self.serve(socket)
        except Dropped:
            if self.closes_with is None:
                socket.transport.abort()
            else:
                if self.says_done:
                    await socket.send(json.dumps({"type": "done"}))
                await socket.close(self.closes_with)
        except ConnectionClosed as closed:
            self.close_codes.append(closed.rcvd.code if closed.rcvd else None)

    async def serve(self, socket: ServerConnection) -> None:
        start = json.loads(await socket.recv())
        self.starts.append(start)
        await self.moment("ready")
        resume = start.get("resume", {})
        heard = self.sessions.get(resume.get("session")) if self.keeps else None
        resumed = heard is not None
        if heard is None:
            rate = start["sample_rate"]
            position = round(resume.get("from_s", 0.0) * rate)
            told = (resume.get("seq", 0), resume.get("utterances", 0))
            heard = Heard(rate, position, *told, knows_voices=start.get("speaker", False))
        name = f"s{len(self.starts)}"
        self.sessions[name] = heard
        ready = {"type": "ready", "session": name, "resumed": resumed}
        ready |= {"audio_from_s": heard.position / heard.rate, "window_s": 2.0}
        await socket.send(json.dumps(ready))
        for event in heard.log:  # more than the client lacks
            await socket.send(json.dumps(event))
        await self.listen(socket, heard)

    async def listen(self, socket: ServerConnection, heard: Heard) -> None:
        credit = heard.position
        on_this_socket = 0
        while True:
            message = await socket.recv()
            if isinstance(message, bytes):
                self.received += len(message)
                on_this_socket += len(message)
                self.ahead = max(self.ahead, heard.position + len(message) // 2 - credit)
                for sample in np.frombuffer(message, "<i2").tolist():
                    heard.samples.append(sample)
                    heard.position += 1
                    if heard.position % round(self.utterance_s * heard.rate) == 0:
                        heard.final()
                        await self.say(socket, heard)
                await self.moment(f"{on_this_socket // 2} samples")
                partial = {"type": "partial", "text": str(heard.position)}
                await socket.send(json.dumps(partial))
                if self.works.is_set():
                    credit = heard.position
                    progress = {"type": "progress", "processed_s": credit / heard.rate}
                    await socket.send(json.dumps(progress))
                continue
            kind = json.loads(message)["type"]
            self.controls.append(kind)
            await self.moment(kind)
            if kind != "keepalive":
                heard.final()
                await self.say(socket, heard)
            if kind == "end":
                await self.moment("done")
                await socket.send(json.dumps({"type": "done"}))
                return

    async def say(self, socket: ServerConnection, heard: Heard) -> None:
        """Send the last final, unless this was done."""
        if heard.log and heard.log[-1]["seq"] == heard.seq and not heard.samples:
            await self.moment(f"before {heard.seq}")
            await socket.send(json.dumps(heard.log[-1]))
            await self.moment(f"after {heard.seq}")


@asynccontextmanager
async def serving(server: "Scripted | Serve", port: int = 0) -> AsyncIterator[str]:
    """The URL of a server."""
    admit = server.admit if isinstance(server, Scripted) else None
    async with serve(
        server, "127.0.0.1", port, process_request=admit, close_timeout=1, max_queue=None
    ) as listener:
        port = next(iter(listener.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/v1/ws"


async def stream(
    session: LiveSession, pcm: bytes, finalize_at: Sequence[float] = ()
) -> list[Event]:
    """All events of a session that sends ``pcm`` in odd pieces."""

    async def feed() -> None:
        cuts = sorted({round(at * RATE) * 2 for at in finalize_at} | {len(pcm)})
        at = 0
        for cut in cuts:
            for begin in range(at, cut, 333):
                await session.send(pcm[begin : min(begin + 333, cut)])
            if cut < len(pcm):
                await session.finalize()
            at = cut
        await session.finish()

    async with asyncio.timeout(WAIT_S), session:
        feeding = asyncio.create_task(feed())
        try:
            return [event async for event in session]
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


def texts(events: Sequence[Event]) -> list[str]:
    return [event["text"] for event in events if event["type"] == "final"]


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until(server: Scripted, samples: int) -> None:
    """Wait until the server has received so many samples."""
    await eventually(lambda: server.received >= 2 * samples)


async def test_a_stream_gives_its_events_in_order_and_ends_with_done() -> None:
    server = Scripted()
    async with serving(server) as url:
        events = await stream(LiveSession(url, sample_rate=RATE, language="en"), ramp(4.5))
    assert texts(events) == spoken(4.5)
    assert [event["type"] for event in events].count("done") == 1
    assert events[-1]["type"] == "done"
    assert {event["type"] for event in events} == {"partial", "final", "done"}
    assert server.starts[0]["language"] == "en"
    assert "model" not in server.starts[0]


async def test_no_more_is_sent_than_the_server_gave_credit_for() -> None:
    server = Scripted()
    server.works.clear()
    async with serving(server) as url, LiveSession(url, sample_rate=RATE, buffer_s=3.0) as session:
        sending = asyncio.create_task(session.send(ramp(20)))
        await until(server, 2 * RATE)
        await asyncio.sleep(0.1)
        assert server.received == 2 * 2 * RATE
        assert not sending.done()  # what waits is bounded too
        sending.cancel()


async def test_credit_is_kept_over_a_whole_stream() -> None:
    server = Scripted()
    async with serving(server) as url:
        await stream(LiveSession(url, sample_rate=RATE), ramp(20))
    assert server.ahead <= 2 * RATE


MOMENTS = [
    "ready",
    "100 samples",
    "1000 samples",
    "2500 samples",
    "before 1",
    "after 1",
    "before 3",
    "after 4",
    "finalize",
    "end",
    "before 7",
    "done",
]


@pytest.mark.parametrize("closes_with", [None, 1001, 1011, 1012])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("moment", MOMENTS[1:])
async def test_a_drop_loses_and_doubles_no_final(
    moment: str, keeps: bool, closes_with: int | None
) -> None:
    server = Scripted(moment, keeps=keeps, closes_with=closes_with)
    async with serving(server) as url:
        events = await stream(LiveSession(url, sample_rate=RATE), ramp(5.4), [2.3])
    assert texts(events) == spoken(5.4, [2.3])
    assert events[-1]["type"] == "done"
    assert not server.drops
    assert len(server.starts) == 2


async def test_a_done_that_nobody_asked_for_is_no_end() -> None:
    server = Scripted("2500 samples", keeps=False, closes_with=1001)
    server.says_done = True
    async with serving(server) as url:
        events = await stream(LiveSession(url, sample_rate=RATE), ramp(4.0))
    assert texts(events) == spoken(4.0)
    assert [event["type"] for event in events].count("done") == 1


@settings(max_examples=15, deadline=None)
@given(
    drops=st.lists(st.sampled_from(MOMENTS), max_size=4),
    keeps=st.booleans(),
    seconds=st.sampled_from([0.0, 0.1, 3.0, 6.2]),
)
async def test_any_row_of_drops_loses_and_doubles_no_final(
    drops: list[str], keeps: bool, seconds: float
) -> None:
    drops = [drop for drop in drops if drop != "ready"]
    drops = [after for drop in drops for after in (drop, "ready")]
    server = Scripted(*drops, keeps=keeps)
    async with serving(server) as url:
        events = await stream(LiveSession(url, sample_rate=RATE), ramp(seconds))
    assert texts(events) == spoken(seconds)


async def test_a_server_may_restart_meanwhile() -> None:
    first, second = Scripted(keeps=False), Scripted(keeps=False)
    first.works.clear()
    async with serving(first) as url:
        streaming = asyncio.create_task(stream(LiveSession(url, sample_rate=RATE), ramp(6.0)))
        await until(first, RATE)
    await asyncio.sleep(0.3)  # nobody listens
    async with serving(second, urlsplit(url).port or 0):
        assert texts(await streaming) == spoken(6.0)


async def test_a_busy_server_is_waited_for_when_a_stream_comes_back() -> None:
    server = Scripted("2500 samples")
    async with serving(server) as url:
        session = LiveSession(url, sample_rate=RATE)
        async with session:
            server.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "full", Retry_After="0.1")
            server.refuse(HTTPStatus.BAD_GATEWAY, "nobody there")
            await session.send(ramp(4.0))
            await session.finish()
            assert texts([event async for event in session]) == spoken(4.0)
    assert not server.refuses


async def test_a_finalized_utterance_ends_exactly_there() -> None:
    server = Scripted()
    async with serving(server) as url:
        session = LiveSession(url, sample_rate=RATE)
        events = await stream(session, ramp(3.0), [0.25, 1.5, 2.0])
    assert texts(events) == spoken(3.0, [0.25, 1.5])


async def test_silence_of_the_client_keeps_the_stream_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "KEEPALIVE_S", 0.02)
    server = Scripted()
    async with serving(server) as url, LiveSession(url, sample_rate=RATE) as session:
        await eventually(lambda: server.controls.count("keepalive") >= 3)
        await session.finish()
        assert [event["type"] async for event in session] == ["done"]


async def test_what_is_kept_of_a_silence_is_bounded() -> None:
    server = Scripted("5000 samples", keeps=False)
    server.utterance_s = 1e6
    async with serving(server) as url:
        session = LiveSession(url, sample_rate=RATE, buffer_s=1.0)
        events = await stream(session, ramp(8.0))
    from_s = server.starts[1]["resume"]["from_s"]
    assert 3.0 <= from_s <= 7.0
    assert texts(events) == [f"{round(from_s * RATE)}-7999"]


async def test_a_server_that_takes_over_is_told_who_spoke_and_how_often() -> None:
    server = Scripted("3500 samples", keeps=False)
    async with serving(server) as url:
        events = await stream(LiveSession(url, sample_rate=RATE, speaker=True), ramp(5.0))
    finals = [event for event in events if event["type"] == "final"]
    assert [final["utterance"] for final in finals] == [0, 1, 2, 3, 4]
    resume = server.starts[1]["resume"]
    assert resume["utterances"] == 3
    assert resume["voices"] == {
        "SPEAKER_00": "SPEAKER_00 of 2000-2999",
        "SPEAKER_01": "SPEAKER_01 of 1000-1999",
    }


async def test_of_partials_that_nobody_read_the_latest_is_kept() -> None:
    server = Scripted()
    async with serving(server) as url, LiveSession(url, sample_rate=RATE) as session:
        await session.send(ramp(3.0))
        await session.finish()
        await eventually(lambda: "end" in server.controls)
        events = [event["type"] async for event in session]
    assert events.count("final") == 3
    assert events.count("partial") <= 4 < server.received // 200


async def test_a_finished_stream_takes_no_more_audio() -> None:
    async with serving(Scripted()) as url, LiveSession(url, sample_rate=RATE) as session:
        await session.finish()
        with pytest.raises(LiveError, match="finished"):
            await session.send(ramp(0.1))


async def test_a_client_that_leaves_says_so() -> None:
    server = Scripted()
    async with serving(server) as url:
        async with LiveSession(url, sample_rate=RATE) as session:
            await session.send(ramp(0.5))
            await until(server, 100)
        await eventually(lambda: server.close_codes)
    assert server.close_codes == [1000]
    assert len(server.starts) == 1


@pytest.mark.parametrize(("header", "wait_s"), [({"Retry_After": "7"}, 7.0), ({}, 2.0)])
async def test_a_full_server_is_busy(header: dict[str, str], wait_s: float) -> None:
    server = Scripted()
    server.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "all streams are taken", **header)
    async with serving(server) as url:
        with pytest.raises(ServerBusy, match="all streams are taken") as busy:
            await LiveSession(url).__aenter__()
    assert busy.value.retry_after_s == wait_s


READY = json.dumps(
    {"type": "ready", "session": "s", "resumed": False, "audio_from_s": 0, "window_s": 5}
)
Serve = Callable[[ServerConnection], Awaitable[None]]


def closing(close_code: int, **said: Any) -> Serve:
    """A server that is ready unless busy, and at the first audio says an error and closes."""

    async def serve_once(socket: ServerConnection) -> None:
        await socket.recv()
        if close_code != 1013:
            await socket.send(READY)
            await socket.recv()
        if said:
            await socket.send(json.dumps({"type": "error", **said}))
            await socket.send(json.dumps({"type": "done"}))
        await socket.close(close_code, "the reason")

    return serve_once


async def test_a_server_may_be_busy_after_the_handshake() -> None:
    said = {"code": "overloaded", "message": "no stream is free", "retry_after_s": 5}
    async with serving(closing(1013, **said)) as url:
        with pytest.raises(ServerBusy, match="no stream is free") as busy:
            await LiveSession(url).__aenter__()
    assert busy.value.retry_after_s == 5


@pytest.mark.parametrize("code", [1000, 1003, 1008, 4001])
@pytest.mark.parametrize(
    ("said", "expected"),
    [({"code": "invalid_request", "message": "no"}, "invalid_request"), ({}, "closed_")],
)
async def test_a_refusal_is_no_drop(code: int, said: dict[str, str], expected: str) -> None:
    async with serving(closing(code, **said)) as url:
        with pytest.raises(LiveError, match=expected) as refused:
            await stream(LiveSession(url, sample_rate=RATE), ramp(1.0))
    assert not isinstance(refused.value, ConnectionLost)


async def test_an_unknown_route_is_said() -> None:
    server = Scripted()
    server.refuse(HTTPStatus.NOT_FOUND, "not here")
    async with serving(server) as url:
        with pytest.raises(LiveError, match="http_404: not here"):
            await LiveSession(url).__aenter__()


@pytest.mark.parametrize("said", ["[1, 2]", "no json", '{"type": "final", "text": "no end"}'])
async def test_nonsense_of_the_server_is_an_error(said: str) -> None:
    async def nonsense(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(READY)
        await socket.send(said)
        await socket.wait_closed()

    async with serving(nonsense) as url:
        with pytest.raises(LiveError, match="protocol_error"):
            await stream(LiveSession(url, sample_rate=RATE), ramp(1.0))


async def test_nobody_at_home_is_said_at_once() -> None:
    async with serving(Scripted()) as url:
        pass
    with pytest.raises(ConnectionLost):
        await LiveSession(url).__aenter__()


async def test_a_server_that_does_not_come_back_is_given_up() -> None:
    server = Scripted("500 samples")
    async with serving(server) as url:
        for _ in range(100):
            server.refuse(HTTPStatus.BAD_GATEWAY, "nobody there")
        server.refuses, later = [], server.refuses
        async with LiveSession(url, sample_rate=RATE, retry_s=0.3) as session:
            server.refuses = later
            await session.send(ramp(1.0))
            with pytest.raises(ConnectionLost, match="nobody there"):
                [event async for event in session]
            with pytest.raises(ConnectionLost):
                await session.send(ramp(1.0))


async def test_audio_that_kills_every_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_FRUITLESS_DROPS", 3)
    server = Scripted(*["500 samples"] * 100, keeps=False)
    async with serving(server) as url:
        with pytest.raises(ConnectionLost):
            await stream(LiveSession(url, sample_rate=RATE), ramp(2.0))
    assert len(server.starts) <= 5


def test_a_line_says_who_and_how() -> None:
    final = {"start": 1.25, "end": 2.5, "text": " Hello", "speaker": "S1"}
    assert line(final) == "    1.25     2.50  S1  Hello"
    final["emotion"] = {"neutral": 0.1, "angry": 0.9}
    assert line(final) == "    1.25     2.50  S1  angry  Hello"


async def command_line(
    server: Scripted, *arguments: str, audio: bytes | None = None, key: str = ""
) -> str:
    """What the command prints."""
    async with serving(server) as url, asyncio.timeout(WAIT_S):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            live.__file__,
            "--url",
            url,
            "--speed",
            "max",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "SPEECHGRAPH_KEY": key},
        )
        try:
            out, _ = await process.communicate(audio)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0
    return out.decode()


@pytest.mark.parametrize("piped", [False, True])
async def test_the_command_prints_what_a_wav_says(tmp_path: Path, piped: bool) -> None:
    path = tmp_path / "ramp.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(ramp(2.5))
    if piped:
        out = await command_line(Scripted(), "-", audio=path.read_bytes())
    else:
        out = await command_line(Scripted(), str(path))
    assert [row.split() for row in out.splitlines()] == [
        ["0.00", "1.00", "0-999"],
        ["1.00", "2.00", "1000-1999"],
        ["2.00", "2.50", "2000-2499"],
    ]


async def test_the_command_prints_every_event_of_a_pipe() -> None:
    out = await command_line(Scripted(), "-", "--rate", str(RATE), "--json", audio=ramp(2.5))
    events = [json.loads(row) for row in out.splitlines()]
    assert texts(events) == spoken(2.5)
    assert events[-1] == {"type": "done"}


async def test_the_command_reads_other_files(tmp_path: Path) -> None:
    path = tmp_path / "tone.flac"
    path.write_bytes(encode("flac", "flac", tone(1.5, 44_100), 44_100))
    server = Scripted()
    out = await command_line(server, str(path))
    assert [row.split()[:2] for row in out.splitlines()] == [["0.00", "1.00"], ["1.00", "1.50"]]
    assert server.starts[0]["sample_rate"] == 16_000


async def test_the_command_sends_the_key_of_the_environment() -> None:
    server = Scripted()
    server.key = "0123abcd"
    out = await command_line(server, "-", "--rate", str(RATE), audio=ramp(1.0), key=server.key)
    assert out.split()[-1] == "0-999"
