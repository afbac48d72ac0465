"""The REST of the Whisper web service: `/api/…`, by the conformance list of its protocol."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from speech.errors import EngineFailed, Overloaded, SpeechError, UnsupportedAudio
from speech.ports import TranscribeOptions
from speech.transcript import Segment, Transcript, Word
from tests.unit.fake_service import FakeService, app_of, client_of

TRANSCRIPT = Transcript(
    duration=2.5,
    language="ru",
    segments=(
        Segment(0.0, 1.0, " Привет,", (Word(" Привет,", 0.0, 1.0, 0.9),)),
        Segment(1.5, 2.0, " мир."),
    ),
)
FILE = ("speech.mp3", b"ID3")
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Content-Length, Accept-Encoding, Authorization",
}


@pytest.fixture
def service() -> FakeService:
    service = FakeService()
    service.answer = TRANSCRIPT
    return service


@pytest.fixture
async def client(service: FakeService):
    async with client_of(app_of(service)) as client:
        yield client


async def ask(client: httpx.AsyncClient, **form: Any) -> httpx.Response:
    return await client.post("/api/transcribe", files={"file": FILE}, data=form)


# ---------------------------------------------------------------- transcribe


async def test_the_answer_is_flat(client):
    answer = await ask(client)
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("processing_time") >= 0
    assert body == {
        "text": "Привет, мир.",
        "language": "ru",
        "segments": [
            {"text": " Привет,", "start": 0.0, "end": 1.0},
            {"text": " мир.", "start": 1.5, "end": 2.0},
        ],
    }


async def test_empty_keys_are_left_out(client, service):
    service.answer = Transcript(1.0, segments=())
    assert set((await ask(client)).json()) == {"language", "processing_time"}


async def test_the_recogniser_is_asked_for_what_the_original_asks(client, service):
    await ask(client)
    assert service.options.tasks == {"transcribe"}
    assert service.options.transcribe == TranscribeOptions(
        model="large-v3-turbo",
        word_timestamps=False,
        vad_filter=True,
        vad_parameters={
            "threshold": 0.5,
            "min_silence_duration_ms": 1000,
            "speech_pad_ms": 200,
        },
        batch_size=1,
        beam_size=5,
        condition_on_previous_text=True,
    )


@pytest.mark.parametrize(
    ("language", "expected", "prompt"),
    [
        ("ru", "ru", "Это аудио на русском языке."),
        ("EN", "en", None),
        ("auto", None, None),
        ("", None, None),
    ],
)
async def test_russian_has_a_prompt_and_nothing_means_auto(
    client, service, language, expected, prompt
):
    await ask(client, language=language)
    options = service.options.transcribe
    assert (options.language, options.initial_prompt) == (expected, prompt)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({}, "large-v3-turbo"),
        ({"model": ""}, "large-v3-turbo"),
        ({"model": "small"}, "small"),
        ({"model": "base"}, "large-v3-turbo"),
    ],
)
async def test_a_model_is_a_name_of_the_catalogue_or_of_the_operators(service, asked, meant):
    async with client_of(app_of(service, whisper_rest_aliases={"base": None})) as client:
        assert (await ask(client, **asked)).status_code == 200
    assert service.options.transcribe.model == meant


@pytest.mark.parametrize(
    "request_",
    [{"data": {"model": "small"}}, {"files": {"audio": FILE}}, {}],
    ids=["no file", "another name", "nothing"],
)
async def test_a_request_without_a_file_gets_the_text_of_the_original(client, request_):
    answer = await client.post("/api/transcribe", **request_)
    assert (answer.status_code, answer.json()) == (400, {"error": "Файл не найден в запросе"})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnsupportedAudio("no audio"), 415),
        (EngineFailed("out of luck"), 500),
        (Overloaded("busy"), 503),
    ],
)
async def test_a_failure_has_the_text_of_the_original_and_a_status_that_fits(
    client, service, error: SpeechError, status
):
    service.answer = error
    answer = await ask(client)
    text = f"Ошибка при выполнении транскрипции: {error.message}"
    assert (answer.status_code, answer.json()) == (status, {"error": text})


@pytest.mark.parametrize("form", [{"task": "sing"}, {"model": "nobody"}, {"language": "a" * 33}])
async def test_a_field_that_cannot_be_is_refused(client, service, form):
    answer = await ask(client, **form)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("Ошибка при выполнении транскрипции: ")
    assert service.calls == []


async def test_an_empty_file_is_refused(client, service):
    answer = await client.post("/api/transcribe", files={"file": ("a.mp3", b"")})
    assert answer.status_code == 400
    assert service.calls == []


async def test_an_upload_has_its_bound(service):
    async with client_of(app_of(service, max_upload_bytes=1000)) as client:
        answer = await client.post("/api/transcribe", files={"file": ("a.mp3", b"x" * 1000)})
    assert answer.status_code == 413
    assert set(answer.json()) == {"error"}


# ---------------------------------------------------------------- models, health, metrics


async def test_models_are_listed_with_the_descriptions_of_the_original(service):
    aliases = {"base": None, "ours": "large-v3-turbo"}
    async with client_of(app_of(service, whisper_rest_aliases=aliases)) as client:
        answer = await client.get("/api/models")
    assert (answer.status_code, answer.json()) == (200, {
        "available_models": {
            "base": "Хороший баланс скорости и точности (~1 ГБ)",
            "small": "Более точная модель (~2 ГБ)",
            "ours": "",
        }
    })  # fmt: skip


async def test_a_model_without_a_name_of_the_original_has_its_id(client, service):
    service.families = {"whisper", "onnx_asr"}
    names = (await client.get("/api/models")).json()["available_models"]
    assert set(names) == {"small", "large-v3-turbo", "vosk-ru"}
    for name in names:
        assert (await ask(client, model=name)).status_code == 200


async def test_loaded_models_are_left_out_where_there_is_none(client, service):
    assert "loaded_models" not in (await client.get("/api/models")).json()
    service.loaded = [{"model_name": "small"}, {"model_name": "emo"}]
    assert (await client.get("/api/models")).json()["loaded_models"] == ["small"]


async def test_a_failure_to_list_models_has_the_text_of_the_original(client, service, monkeypatch):
    async def broken() -> list[dict[str, Any]]:
        raise EngineFailed("no answer")

    monkeypatch.setattr(service, "cache_stats", broken)
    answer = await client.get("/api/models")
    text = "Ошибка при получении списка моделей: no answer"
    assert (answer.status_code, answer.json()) == (500, {"error": text})


async def test_health_has_the_time_to_the_nanosecond(client):
    body = (await client.get("/api/health")).json()
    assert (body["status"], body["version"]) == ("ok", "1.2.3")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", body["server_time"])
    server_time = datetime.fromisoformat(body["server_time"])
    assert abs(datetime.now(UTC) - server_time) < timedelta(minutes=1)


async def test_metrics_count_the_transcriptions_and_those_that_failed(client, service):
    await ask(client)
    service.answer = EngineFailed("out of luck")
    await ask(client)
    body = (await client.get("/api/metrics")).json()
    assert set(body) == {"requests_total", "errors_total", "processing_time_ms", "uptime"}
    assert (body["requests_total"], body["errors_total"]) == (2, 1)


# ---------------------------------------------------------------- pages of other origins


@pytest.mark.parametrize("path", ["/api/transcribe", "/api/models", "/api/health", "/api/nothing"])
async def test_options_is_answered_with_nothing_but_the_permission(client, path):
    answer = await client.options(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert CORS.items() <= {k.title(): v for k, v in answer.headers.items()}.items()


async def test_every_answer_may_be_read_by_any_page_errors_as_well(client, service):
    service.answer = ValueError("an error of ours")
    answers = [
        await client.get("/api/health"),
        await client.get("/api/models"),
        await client.get("/api/nothing"),
        await client.post("/api/transcribe"),
        await ask(client),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 400, 500]
    for answer in answers:
        assert CORS.items() <= {k.title(): v for k, v in answer.headers.items()}.items()


async def test_other_routes_are_not_opened(client):
    assert "Access-Control-Allow-Origin" not in (await client.get("/health")).headers


async def test_the_root_stays_that_of_the_vosk_server(client):
    assert (await client.get("/")).json()["data"] == "No_service_selected"
