"""The clients in vosk-server's repository and its Asterisk module, message by message.

Each has the path, the texts, the sizes of frames and the order of sending and receiving of the
original. One that waits for an answer after each frame waits for ever if one is missing, and loses
its last result if there is one too many.
"""

import io
import wave
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from configs.catalogue import Catalogue
from speech.audio import SAMPLE_RATE
from tests.unit.fake_models import FakeModels
from tests.unit.fake_service import client_of
from tests.unit.live_audio import exact, frames, silence, speak
from tests.unit.live_service import (
    CATALOGUE,
    STREAMING,
    UTTERANCES,
    WHISPER,
    Client,
    LiveService,
    serving,
)

SPOKEN = exact(silence(0.5), speak(1, 2, 3), silence(1.5), speak(4, 5))
EOF = '{"eof" : 1}'
CONFIG = '{ "config" : { "sample_rate" : 16000 } }'
WORDS = """{"config" :
                    { "phrase_list" : ["zero one two three four five", "six seven eight nine oh"],
                      "sample_rate" : 16000,
                      "words" : 0}}"""
ALTERNATIVES = '{"config" : { "max_alternatives" : 20, "sample_rate" : 16000 } }'
Answers = list[dict[str, Any]]
Run = Callable[[Client], Awaitable[Answers]]


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        writer.writeframes(SPOKEN)
    return file.getvalue()


def python_of(config: str, size: int = SAMPLE_RATE // 5 * 2) -> Run:
    """websocket/test*.py and client-samples/python; test_ffmpeg.py and java with another size."""

    async def run(client: Client) -> Answers:
        await client.send(config)
        return [
            *[await asked(client, frame) for frame in frames(SPOKEN, size)],
            await asked(client, EOF),
        ]

    return run


async def asked(client: Client, message: bytes | str) -> dict[str, Any]:
    await client.send(message)
    return await client.receive()


async def csharp(client: Client) -> Answers:
    """Sends the file with its header, and closes by itself."""
    answers = [await asked(client, frame) for frame in frames(wav(), 8000)]
    return [*answers, await asked(client, EOF)]


async def golang(client: Client) -> Answers:
    """Sends its whole buffer also where the file ends within it."""
    padded = (frame.ljust(8000, b"\0") for frame in frames(wav(), 8000))
    answers = [await asked(client, frame) for frame in padded]
    return [*answers, await asked(client, EOF)]


async def php(client: Client) -> Answers:
    """Sends an empty frame before the end, where the file is read to its end by then."""
    answers = [await asked(client, frame) for frame in (*frames(wav(), 8000), b"")]
    return [*answers, await asked(client, EOF)]


async def node(client: Client) -> Answers:
    """Sends all at once, and reads until the server closes."""
    await client.send(*frames(wav(), 65_536), EOF)
    return await client.rest()


async def agi(client: Client) -> Answers:
    """asterisk/eagi.py: ends without a word when the call does."""
    await client.send('{ "config" : { "sample_rate" : 8000 } }')
    return [await asked(client, frame) for frame in frames(SPOKEN, 8000)]


async def asterisk_module(client: Client) -> Answers:
    """res_speech_vosk: telephone audio without a configuration; reads when there is something."""
    sent = list(frames(SPOKEN, 3200))
    await client.send(*sent)
    answers = [await client.receive() for _ in sent]
    await client.send(EOF)
    return [*answers, *await client.rest()]


def counted(size: int, data: bytes = SPOKEN, more: int = 1) -> int:
    return -(-len(data) // size) + more


CLIENTS: dict[str, tuple[str, Run, int]] = {
    "test.py": ("/", python_of(CONFIG), counted(6400)),
    "test_ffmpeg.py": ("/", python_of(CONFIG, 8000), counted(8000)),
    "test_words.py": ("/", python_of(WORDS), counted(6400)),
    "test_alternatives.py": ("/", python_of(ALTERNATIVES), counted(6400)),
    "java": ("/", python_of(CONFIG, 2048), counted(2048)),
    "csharp": ("/asr/en/", csharp, counted(8000, wav())),
    "golang": ("/", golang, counted(8000, wav())),
    "php": ("/", php, counted(8000, wav(), 2)),
    "node": ("/asr/en/", node, counted(65_536, wav())),
    "eagi.py": ("/", agi, counted(8000, more=0)),
    "res_speech_vosk": ("/", asterisk_module, counted(3200)),
}
"""Where each connects, what it does, and how many answers it counts on."""


@pytest.fixture
async def service() -> Any:
    async with serving(FakeModels(), vosk={"root_path": True}) as service:
        yield service


@pytest.mark.parametrize("name", CLIENTS)
async def test_each_message_of_a_client_of_vosk_server_has_its_answer(
    service: LiveService, name: str
) -> None:
    path, run, count = CLIENTS[name]
    async with service.connect(path) as client:
        answers = await run(client)
        await client.close()
        assert await client.rest() == []
    assert len(answers) == count
    assert all(answer.keys() <= {"partial", "text", "result", "alternatives"} for answer in answers)
    if name != "eagi.py":
        assert "partial" not in answers[-1]


@pytest.mark.parametrize("config", [CONFIG, WORDS, ALTERNATIVES], ids=["plain", "words", "many"])
async def test_the_results_of_a_client_that_waits_are_complete(
    service: LiveService, config: str
) -> None:
    async with service.connect("/") as client:
        answers = await python_of(config)(client)
    best = [a["alternatives"][0] if "alternatives" in a else a for a in answers]
    assert [a["text"] for a in best if a.get("text")] == ["1 2 3", "4 5"]
    assert any("result" in a for a in best) == (config != WORDS)


# Paths


@pytest.mark.parametrize(
    "path", ["/vosk", "/vosk/", "/ws/", "/v1/ws/", "/asr/ru", "/asr/ru/", "/asr/en/", "/"]
)
async def test_a_slash_at_the_end_of_the_path_of_a_socket_is_ignored(
    service: LiveService, path: str
) -> None:
    end = {"type": "start"} if path.startswith("/v1") else EOF
    async with service.connect(path) as client:
        await client.send(end)
        assert await client.receive()
        await client.close()


@pytest.mark.parametrize("path", ["/", "/asr", "/asr/", "/asr/ru/more"])
async def test_no_other_path_is_a_socket_of_vosk(path: str) -> None:
    async with serving(FakeModels()) as service:
        with pytest.raises(InvalidStatus):
            async with service.connect(path):
                pass


async def test_the_whole_app_has_these_paths_and_its_root_stays_a_page() -> None:
    async with serving(FakeModels(), whole=True, vosk={"root_path": True}) as service:
        for path in ("/vosk/", "/asr/ru/", "/"):
            async with service.connect(path) as client:
                assert await asked(client, EOF) == {"text": ""}
        async with client_of(service.app) as http:
            assert (await http.get("/")).status_code == 200


# Languages


@pytest.mark.parametrize(
    ("language", "model"),
    [
        ("ru", STREAMING),
        ("EN-us", STREAMING),
        ("russian", STREAMING),
        ("auto", STREAMING),
        ("ja", "demo-vosk-japanese"),
        ("ko", "demo-whisper-many"),
    ],
)
async def test_the_language_of_the_path_selects_a_model_that_knows_it(
    service: LiveService, monkeypatch: pytest.MonkeyPatch, language: str, model: str
) -> None:
    add_models(service, monkeypatch)
    async with service.connect(f"/asr/{language}/?sample_rate=16000") as client:
        await client.send(exact(speak(1)), EOF)
        *_, last = await client.rest()
    assert last["text"] == "1"
    used = [name for name, _ in service.models.opened] + [o.model for o in service.models.asked]
    assert used == [model]
    if model != STREAMING:
        assert service.models.asked[0].language == language


async def test_what_is_no_language_is_refused_in_the_handshake(service: LiveService) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with service.connect("/asr/klingon/"):
            pass
    assert refused.value.response.status_code == 422
    assert b"klingon" in (refused.value.response.body or b"")


async def test_a_language_that_no_model_knows_is_an_error(service: LiveService) -> None:
    async with service.connect("/asr/ja/") as client:
        await client.send(b"\0\0")
        (error,) = await client.rest()
    assert "'ja'" in error["error"]
    assert client.closed[0] == 1008


async def test_a_model_that_is_named_counts_more_than_the_language(service: LiveService) -> None:
    async with service.connect(f"/asr/de/?model={STREAMING}&sample_rate=16000") as client:
        await client.send(exact(speak(1)), EOF)
        assert (await client.rest())[-1]["text"] == "1"


def add_models(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that are no default of the live streams, besides those of the demo."""
    demo = {model.id: model for model in CATALOGUE.models}
    japanese = demo[UTTERANCES].model_copy(
        update={"id": "demo-vosk-japanese", "languages": ("ja",), "aliases": ()}
    )
    many = demo[WHISPER].model_copy(
        update={"id": "demo-whisper-many", "languages": (), "aliases": ()}
    )
    catalogue = Catalogue(models=(*CATALOGUE.models, japanese, many))
    monkeypatch.setattr(service.graph, "catalogue", catalogue)
    monkeypatch.setattr(service.streams, "models", replace(service.streams.models, general=many.id))
