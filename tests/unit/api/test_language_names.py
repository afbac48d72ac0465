"""Every dialect takes the same names of languages, and rejects the others in its own shape."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from api.openai.realtime_settings import Transcription
from api.v1.native_start import Start
from api.v1.requests import TraSettings
from tests.unit.fake_service import FakeService, app_of, client_of

MEANINGS = [
    ("", None),
    (" ", None),
    ("auto", None),
    ("null", None),
    ("detect", None),
    ("ru-RU", "ru"),
    ("en_US", "en"),
    ("Russian", "ru"),
    ("русский", "ru"),
    ("rus", "ru"),
]


def v1_form(language: str) -> Mapping[str, Any]:
    return {"request_json": json.dumps({"settings": {"tra": {"language": language}}})}


def plain_form(language: str) -> Mapping[str, Any]:
    return {"language": language}


DOORS: dict[str, tuple[str, Callable[[str], Mapping[str, Any]]]] = {
    "/v1/process": ("audio", v1_form),
    "/v1/audio/transcriptions": ("file", plain_form),
    "/api/transcribe": ("file", plain_form),
    "/transcribe": ("audio_file", plain_form),
}
"""The routes that take a language: the field of the file, and the form with a language."""
SOCKETS: dict[str, Callable[[str], Any]] = {
    "native": lambda name: Start(type="start", language=name).language,
    "v1": lambda name: TraSettings(language=name).options().language,
    "realtime": lambda name: Transcription(language=name).language,
}


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app_of(service)) as client:
        yield client


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize(("name", "code"), MEANINGS)
async def test_a_language_means_the_same_on_every_route(
    client: httpx.AsyncClient, service: FakeService, path: str, name: str, code: str | None
) -> None:
    file, form = DOORS[path]
    answer = await client.post(path, files={file: ("a.wav", b"RIFF")}, data=form(name))
    assert answer.status_code == 200, answer.text
    assert service.options.transcribe.language == code


@pytest.mark.parametrize("path", DOORS)
async def test_an_unknown_language_is_an_error_that_names_the_field_and_the_codes(
    client: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    file, form = DOORS[path]
    answer = await client.post(path, files={file: ("a.wav", b"RIFF")}, data=form("klingon"))
    assert answer.status_code in (400, 422)
    assert "language" in answer.text
    assert "klingon" in answer.text
    assert "en, eo, es, et" in answer.text
    assert service.calls == []


@pytest.mark.parametrize("kind", SOCKETS)
@pytest.mark.parametrize(("name", "code"), MEANINGS)
def test_a_language_means_the_same_on_every_socket(kind: str, name: str, code: str | None) -> None:
    assert SOCKETS[kind](name) == code


@pytest.mark.parametrize("kind", SOCKETS)
def test_an_unknown_language_is_an_error_on_every_socket(kind: str) -> None:
    with pytest.raises(ValidationError, match=r"language[\s\S]*klingon[\s\S]*en, eo, es, et"):
        SOCKETS[kind]("klingon")


async def test_a_list_of_one_language_is_that_language(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    form = {"languages[]": ["Russian"]}
    files = {"file": ("a.wav", b"RIFF")}
    await client.post("/v1/audio/transcriptions", files=files, data=form)
    assert service.options.transcribe.language == "ru"


async def test_the_operator_may_name_the_default_of_asr_in_words(service: FakeService) -> None:
    async with client_of(app_of(service, asr={"language": "Russian"})) as client:
        for language in ({}, {"language": ""}, {"language": "auto"}):
            await client.post("/transcribe", files={"audio_file": ("a", b"RIFF")}, data=language)
    assert [options.transcribe.language for _, options in service.calls] == ["ru", "ru", None]
