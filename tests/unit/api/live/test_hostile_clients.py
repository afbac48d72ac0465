"""Whatever a client sends on a socket is answered in its dialect, and leaves nothing behind."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from api.compat.vosk_socket import Config
from api.openai.realtime_settings import BetaSessionUpdate, SessionUpdate
from api.v1.native_start import Start
from api.v1.requests import ProcessRequest
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, speak
from tests.unit.live_service import STREAMING, UTTERANCES, WAIT_S, LiveService

Frame = str | bytes
Place = tuple[str, ...]

AUDIO = exact(speak(1))


def places(model: type[BaseModel], at: Place = ()) -> Iterator[Place]:
    """Where the fields of a model and of its parts stand in a message."""
    for name, field in model.model_fields.items():
        yield (*at, name)
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from places(part, (*at, name))


@dataclass(frozen=True)
class Kind:
    """One dialect: a message with every field that begins a stream, and how a client ends."""

    path: str
    message: dict[str, Any]
    fields: tuple[Place, ...]
    opening: tuple[Any, ...]
    end: Any

    def is_answer(self, message: Any) -> bool:
        keys = set(message)
        match self.path:
            case "/ws":
                return keys == {"silence", "data", "error", "last_message"}
            case "/vosk":
                return bool(keys & {"error", "partial", "text", "alternatives"})
            case "/v1/realtime":
                return {"type", "event_id"} <= keys
        return "type" in keys or "error" in keys or "text" in keys


def append(audio: bytes) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": b64encode(audio).decode()}


NATIVE = Kind(
    "/v1/ws",
    {
        "type": "start",
        "endpointing": {},
        "resume": {"session": "mine", "seq": 3, "from_s": 1.5, "voices": {}},
    },
    tuple(places(Start)),
    ({"type": "start"}, AUDIO),
    {"type": "end"},
)
V1 = Kind(
    "/v1/ws",
    {"settings": {"tasks": ["transcribe"], "tra": {}, "dia": {}, "emo": {}}},
    tuple(places(ProcessRequest)),
    ({"settings": {"tra": {}}}, AUDIO),
    b"",
)
CONFIG = {"config": {"sample_rate": 16_000, "phrase_list": ["one"]}}
CONFIG_FIELDS = tuple(("config", *place) for place in places(Config))
SHERPA = Kind("/ws", CONFIG, CONFIG_FIELDS, (CONFIG, AUDIO), '{"eof": 1}')
CLASSIC = Kind("/vosk", CONFIG, CONFIG_FIELDS, (CONFIG, AUDIO), '{"eof": 1}')
REALTIME_UPDATE = {
    "type": "session.update",
    "session": {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm"},
                "transcription": {"model": UTTERANCES},
                "turn_detection": {"type": "semantic_vad"},
            }
        },
    },
}
REALTIME = Kind(
    "/v1/realtime",
    REALTIME_UPDATE,
    (
        ("type",),
        ("event_id",),
        ("audio",),
        ("session",),
        *(("session", *place) for place in places(SessionUpdate)),
    ),
    (REALTIME_UPDATE, append(AUDIO)),
    {"type": "input_audio_buffer.commit"},
)
BETA = Kind(
    "/v1/realtime",
    {
        "type": "transcription_session.update",
        "session": {"input_audio_transcription": {}, "turn_detection": {"type": "server_vad"}},
    },
    tuple(("session", *place) for place in places(BetaSessionUpdate)),
    ({"type": "transcription_session.update", "session": {}}, append(AUDIO)),
    {"type": "input_audio_buffer.commit"},
)
KINDS = [NATIVE, V1, SHERPA, CLASSIC, REALTIME, BETA]
NAMES = ["native", "v1", "sherpa", "classic", "realtime", "beta"]
PROBE = {"type": "probe", "event_id": "last"}


# What a client may send


AWKWARD = [
    *(None, 0, -1, 5, 2**63, 10**4000, 10**4300 - 1),
    *(1e308, float("inf"), float("nan")),
    *("", "5", "null", "[]", "[1]", '"text"', '{"a": 1}', "[" * 100_000, "x" * 20_000),
    *("\ud800", "auto", "AAA=", STREAMING, UTTERANCES, "demo-whisper", "demo-gigaam-emo"),
    *([], {}, [[]], [{}], {"type": "start"}),
]
"""Values that a parser may not expect."""
NAMES_OF_TYPES = ["start", "end", "finalize", "session.update", "input_audio_buffer.clear"]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.sampled_from(AWKWARD + NAMES_OF_TYPES) | st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def with_value(message: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    changed = part = deepcopy(message)
    for name in place[:-1]:
        if not isinstance(part.get(name), dict):
            part[name] = {}
        part = part[name]
    part[place[-1]] = value
    return changed


@st.composite
def messages(draw: st.DrawFn, kind: Kind) -> Any:
    """A message with some values at places of the dialect."""
    message = kind.message
    for place in draw(st.lists(st.sampled_from(kind.fields), min_size=1, max_size=3)):
        message = with_value(message, place, draw(values))
    return message


def frames(kind: Kind) -> st.SearchStrategy[Any]:
    words = st.sampled_from(["config", "eof", "END_STREAM", "type", '"type"', "[" * 100_000])
    texts = st.text(st.characters(codec="utf-8"), max_size=30) | words
    audio = st.just(AUDIO) | st.binary(max_size=200)
    other = st.sampled_from(KINDS).flatmap(messages)
    return st.one_of(messages(kind), values, texts, audio, audio.map(append), other)


# The socket


def wire(frame: Any) -> dict[str, Any]:
    if isinstance(frame, bytes):
        return {"type": "websocket.receive", "bytes": frame}
    text = frame if isinstance(frame, str) else json.dumps(frame)
    return {"type": "websocket.receive", "text": text.encode(errors="replace").decode()}


async def visit(service: LiveService, kind: Kind, sent: list[Any]) -> list[Any]:
    """One socket of a client that sends so and then ends, until it is closed; the answers."""
    incoming = iter([{"type": "websocket.connect"}, *map(wire, sent)])
    over = asyncio.Event()
    answers: list[Any] = []

    async def receive() -> dict[str, Any]:
        message = next(incoming, None)
        if message is None:
            await over.wait()
            message = {"type": "websocket.disconnect", "code": 1000}
        return message

    async def send(message: Any) -> None:
        match message["type"]:
            case "websocket.send":
                answers.append(json.loads(message["text"]))
                probed = answers[-1].get("error") or {}
                if isinstance(probed, dict) and probed.get("event_id") == PROBE["event_id"]:
                    over.set()
            case "websocket.close":
                answers.append(message["code"])

    scope = {"type": "websocket", "path": kind.path, "query_string": b"", "headers": []}
    async with asyncio.timeout(WAIT_S):
        await service.app(scope, receive, send)
    return answers


class Sockets:
    """One service for many clients, one after the other."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        models = FakeModels()
        self._service = LiveService(models.ports(), models, retention_s=0)

    def check(self, kind: Kind, sent: list[Any]) -> None:
        """A client sends all that and ends; the answers must be those of the dialect."""
        if kind.path == "/v1/realtime":  # where nothing is the end
            sent = [*sent, PROBE]
        answers = self._runner.run(visit(self._service, kind, sent))
        self._service.assert_free()
        if kind.path != "/v1/realtime":
            assert answers.pop() in (1000, 1008, 1013)
        elif isinstance(answers[-1], int):
            assert answers.pop() in (1008, 1013)
        for answer in answers:
            assert kind.is_answer(answer)
            assert "internal" not in json.dumps(answer)


@pytest.fixture(scope="module")
def sockets() -> Iterator[Sockets]:
    with asyncio.Runner() as runner:
        yield Sockets(runner)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_any_value_of_any_field_is_answered_in_the_dialect(sockets: Sockets, kind: Kind) -> None:
    for place in kind.fields:
        for value in AWKWARD:
            message = with_value(kind.message, place, value)
            sockets.check(kind, [message, kind.opening[-1], message, kind.end])


@pytest.mark.parametrize("begun", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_whatever_is_sent_is_answered_in_the_dialect(
    sockets: Sockets, kind: Kind, begun: bool, data: st.DataObject
) -> None:
    opening = kind.opening if begun else ()
    hostile = data.draw(st.lists(frames(kind), min_size=1, max_size=3))
    sockets.check(kind, [*opening, *hostile, kind.end])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_any_depth_of_a_message_is_answered_in_the_dialect(sockets: Sockets, kind: Kind) -> None:
    for depth in range(900, 1000, 10):
        for name in ("type", "config", "settings"):
            message = f'{{"{name}": {"[" * depth}{"]" * depth}}}'
            sockets.check(kind, [message, kind.opening[-1], message, kind.end])
