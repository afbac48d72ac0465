"""A conversation over a connection in memory: every way it can end."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from api.compat.classic_socket import ClassicSocket
from api.compat.sherpa_socket import SherpaSocket
from api.live import conversation
from api.live.connection import Disconnected, Frame
from api.live.conversation import Dialect, converse
from api.live.registry import LiveStreams
from api.openai.realtime import Realtime
from api.v1.native_stream import NativeStream
from speech.live import registry
from tests.unit.fake_models import FakeModels, Gate
from tests.unit.live_audio import exact, silence, speak
from tests.unit.live_service import WAIT_S, LiveService
from tests.unit.virtual_time import run_in_virtual_time

START = '{"type": "start"}'
END = '{"type": "end"}'
SOUND = exact(speak(1))


class MemoryConnection:
    """A connection whose client is the test."""

    def __init__(self, *frames: Frame, flow_control: bool = False) -> None:
        self.flow_control = flow_control
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reading = Gate()
        self.received = 0
        self.closed: tuple[int, str] | None = None
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.feed(*frames)

    def feed(self, *frames: Frame) -> None:
        for frame in frames:
            self._frames.put_nowait(frame)

    def drop(self) -> None:
        self._frames.put_nowait(None)

    async def receive(self) -> Frame:
        frame = await self._frames.get()
        if frame is None:
            raise Disconnected
        self.received += 1
        return frame

    async def send(self, text: str) -> None:
        await self.reading()
        self.sent.put_nowait(json.loads(text))

    async def close(self, code: int, reason: str) -> None:
        assert self.closed is None
        self.closed = (code, reason)

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of a kind."""
        async with asyncio.timeout(WAIT_S):
            while (message := await self.sent.get())["type"] != kind:
                pass
        return message

    @property
    def unread(self) -> list[dict[str, Any]]:
        return [self.sent.get_nowait() for _ in range(self.sent.qsize())]


def service_of(**settings: Any) -> LiveService:
    models = FakeModels()
    return LiveService(models.ports(), models, **settings)


async def talk(service: LiveService, connection: MemoryConnection) -> None:
    """A whole conversation in the native dialect."""
    async with asyncio.timeout(WAIT_S):
        await converse(connection, service.streams, NativeStream(service.streams))


@asynccontextmanager
async def talking(service: LiveService, connection: MemoryConnection) -> AsyncIterator[None]:
    """A conversation beside the test, awaited at the end."""

    async def hold_a_place() -> None:
        with service.streams.sessions.socket():
            await talk(service, connection)

    task = asyncio.create_task(hold_a_place())
    await asyncio.sleep(0)
    yield
    await task


async def test_audio_goes_in_and_events_come_out_until_the_normal_end() -> None:
    service = service_of()
    connection = MemoryConnection(START, exact(speak(1, 2), silence(1)), END)
    await talk(service, connection)
    sent = connection.unread
    assert (sent[0]["type"], sent[-1]["type"]) == ("ready", "done")
    assert [message["text"] for message in sent if message["type"] == "final"] == ["1 2"]
    assert connection.closed == (1000, "")
    service.assert_free()


async def test_a_start_that_is_refused_is_answered_and_closed_with_the_reason() -> None:
    service = service_of()
    connection = MemoryConnection('{"type": "start", "model": "nothing"}')
    await talk(service, connection)
    (error,) = connection.unread
    assert error["code"] == "model_not_found"
    assert connection.closed == (1008, error["message"])
    service.assert_free()


@pytest.mark.parametrize("frames", [(), (START,)], ids=["before the start", "after it"])
async def test_a_client_that_sends_nothing_is_closed_with_the_reason(
    frames: tuple[Frame, ...],
) -> None:
    service = service_of(start_timeout_s=0.05, idle_timeout_s=0.05, retention_s=0)
    connection = MemoryConnection(*frames)
    await talk(service, connection)
    assert connection.unread[-1]["code"] == "idle_timeout"
    assert connection.closed == (1008, "nothing was received for 0.05 seconds")
    service.assert_free()


DIALECTS: dict[str, Callable[[LiveStreams], Dialect]] = {
    "native": NativeStream,
    "realtime": lambda live: Realtime(live, {}, intent=None, model=None, beta=False),
    "classic": ClassicSocket,
    "sherpa": SherpaSocket,
}
MINUTE_S = 60.0


@pytest.mark.parametrize(
    ("dialect", "minutes", "code"),
    [
        ("native", 29, None),
        ("native", 31, 1008),
        ("realtime", 29, None),
        ("realtime", 31, 1008),
        ("classic", 24 * 60, None),
        ("sherpa", 24 * 60, None),
    ],
)
@pytest.mark.parametrize("configured", [False, True])
def test_a_client_may_connect_long_before_it_speaks(
    dialect: str, minutes: int, code: int | None, configured: bool
) -> None:
    first = '{"config": {}}' if DIALECTS[dialect] in (ClassicSocket, SherpaSocket) else START

    async def wait() -> tuple[int, str] | None:
        service = service_of(retention_s=0)
        connection = MemoryConnection(*([first] if configured else ()))
        streams = service.streams
        task = asyncio.create_task(converse(connection, streams, DIALECTS[dialect](streams)))
        await asyncio.sleep(minutes * MINUTE_S)
        connection.drop()
        await task
        return connection.closed

    closed = run_in_virtual_time(wait())
    assert (closed and closed[0]) == code


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_muted_microphone_ends_no_session(dialect: str) -> None:
    """The last audio may be half an hour ago."""
    opening: dict[str, tuple[Frame, ...]] = {
        "native": (START, SOUND),
        "realtime": (
            f'{{"type": "input_audio_buffer.append", "audio": "{b64encode(SOUND).decode()}"}}',
        ),
    }

    async def wait() -> tuple[int, str] | None:
        service = service_of(retention_s=0)
        connection = MemoryConnection(*opening.get(dialect, (SOUND,)))
        streams = service.streams
        task = asyncio.create_task(converse(connection, streams, DIALECTS[dialect](streams)))
        await asyncio.sleep(29 * MINUTE_S)
        assert streams.sessions.count == 1
        connection.drop()
        await task
        return connection.closed

    assert run_in_virtual_time(wait()) is None


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_sends_no_audio_loses_its_place_to_another(dialect: str) -> None:
    async def crowd() -> tuple[int, str] | None:
        service = service_of(max_sessions=1)
        streams, connection = service.streams, MemoryConnection()

        async def hold_a_place() -> None:
            with streams.sessions.socket():
                await converse(connection, streams, DIALECTS[dialect](streams))

        task = asyncio.create_task(hold_a_place())
        await asyncio.sleep(MINUTE_S)
        with streams.sessions.socket():
            await task
        assert "all places are taken" in json.dumps(connection.unread[-1])
        return connection.closed

    closed = run_in_virtual_time(crowd())
    assert closed == (1013, "all places are taken, and this client has sent no audio yet")


@pytest.mark.parametrize("frames", [(), (START,), (START, exact(speak(1)))], ids=len)
async def test_a_client_that_leaves_is_not_answered_and_its_session_ends(
    frames: tuple[Frame, ...],
) -> None:
    service = service_of(retention_s=0)
    connection = MemoryConnection(*frames)
    connection.drop()
    await talk(service, connection)
    assert connection.closed is None
    service.assert_free()


async def test_a_client_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "SEND_TIMEOUT_S", 0.05)
    service = service_of(retention_s=0)
    connection = MemoryConnection(START, exact(speak(1)))
    connection.reading.shut()
    await talk(service, connection)
    assert connection.closed == (1013, "the client does not read")
    service.assert_free()


async def test_the_connection_that_resumes_a_session_supersedes_the_one_before() -> None:
    service = service_of()
    old, new = MemoryConnection(START), MemoryConnection()
    async with talking(service, old):
        ready = await old.until("ready")
        async with talking(service, new):
            resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
            new.feed(json.dumps({"type": "start", "resume": resume}), exact(speak(1)), END)
            assert (await new.until("ready"))["resumed"]
    assert old.closed == (4001, "the session continues with another socket")
    assert [message["text"] for message in new.unread if message["type"] == "final"] == ["1"]
    assert new.closed == (1000, "")
    service.assert_free()


@pytest.mark.parametrize("frames", [(), (START,)], ids=["before the start", "after it"])
async def test_a_service_that_stops_goes_away_after_the_finals(
    frames: tuple[Frame, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "DRAIN_S", 0.0)
    service = service_of()
    connection = MemoryConnection(*frames)
    async with talking(service, connection):
        if frames:
            connection.feed(exact(speak(1)))
            await connection.until("partial")
        await service.streams.sessions.drain()
    finals = [message["text"] for message in connection.unread if message["type"] == "final"]
    assert finals == (["1"] if frames else [])
    assert connection.closed == (1001, "")
    service.assert_free()


@pytest.mark.parametrize("flow_control", [True, False])
async def test_frames_wait_for_room_in_the_session_only_where_that_slows_the_client_down(
    flow_control: bool,
) -> None:
    service = service_of(max_pending_mb=1, retention_s=0)
    service.models.activity.shut()
    connection = MemoryConnection(START, *[exact(silence(1))] * 30, flow_control=flow_control)
    async with talking(service, connection):
        await service.models.activity.reached.wait()
        for _ in range(300):
            await asyncio.sleep(0)
        assert (connection.received < 31) is flow_control
        service.models.activity.open()
        connection.drop()
    service.assert_free()
