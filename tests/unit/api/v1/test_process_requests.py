"""The v1 dialect: requests to ``POST /v1/process``, and the page about them."""

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from api.errors import STATUS
from api.v1.requests import DiaSettings, EmoSettings, ProcessRequest, TraSettings
from api.v1.responses import ProcessResponse
from speech.ports import DiarizeOptions, EmotionOptions, TranscribeOptions
from tests.unit.fake_service import FakeService, app_of, client_of
from tests.unit.process_requests import ask, ask_tra


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService):
    async with client_of(app_of(service)) as client:
        yield client


# ---------------------------------------------------------------- what may be asked


async def test_diarization_without_a_dia_block_means_its_defaults(client, service):
    answer = await ask(client, '{"settings":{"tasks":["transcribe","diarization"]}}')
    assert answer.status_code == 200
    assert service.options.tasks == {"transcribe", "diarization"}
    assert service.options.diarize == DiarizeOptions(model="pyannote")


async def test_emotion_alone_is_a_request_and_names_the_recogniser_that_finds_the_sentences(
    client, service
):
    request = {"settings": {"tasks": ["emotion"], "emo": {"analysis_level": "sentence"}}}
    assert (await ask(client, request)).status_code == 200
    assert service.options.tasks == {"emotion"}
    assert service.options.emotion == EmotionOptions(model="emo", level="sentence")
    assert service.options.transcribe.model == "large-v3-turbo"


async def test_an_empty_settings_object_means_transcription_with_all_defaults(client, service):
    assert (await ask(client, {"settings": {}})).status_code == 200
    assert service.calls[0][0] == b"RIFF"
    assert service.options.tasks == {"transcribe"}
    assert service.options.transcribe == TranscribeOptions(model="large-v3-turbo")
    assert not service.options.partial_results


async def test_null_blocks_mean_their_defaults(client, service):
    blocks = {"tra": None, "dia": None, "emo": None}
    tasks = ["transcribe", "diarization", "emotion"]
    assert (await ask(client, {"settings": {"tasks": tasks, **blocks}})).status_code == 200
    assert service.options.transcribe == TranscribeOptions(model="large-v3-turbo")
    assert service.options.diarize == DiarizeOptions(model="pyannote")
    assert service.options.emotion == EmotionOptions(model="emo", level="word")


@pytest.mark.parametrize("language", ["auto", "AUTO", None, ""])
async def test_language_auto_means_that_it_is_detected(client, service, language):
    await ask_tra(client, language=language)
    assert service.options.transcribe.language is None


async def test_a_single_temperature_is_a_list_of_one(client, service):
    await ask_tra(client, temperature=0.3)
    assert service.options.transcribe.temperature == (0.3,)


async def test_unknown_keys_are_ignored(client):
    tra = {"beam_size": 2, "no_such_option": 1}
    request = {"settings": {"tra": tra, "extra": {}}, "enable_cache": True}
    assert (await ask(client, request)).status_code == 200


@pytest.mark.parametrize(
    ("field", "accepted", "refused"),
    [
        ("beam_size", [1, 10], [0, 11]),
        ("batch_size", [1, 64], [0, 65]),
        ("no_speech_threshold", [0, 1, None], [-0.01, 1.01]),
        ("language_detection_threshold", [0, 1, None], [1.5]),
        ("best_of", [1, 32], [0, 33]),
        ("temperature", [0, 2, [0.0]], [-0.1, 2.1, [], [0.0] * 17, [3.0], "warm"]),
        ("task", ["translate"], ["sing"]),
        ("patience", [0.5], [0, -1]),
        ("chunk_length", [1, 30, None], [0, 31]),
        ("initial_prompt", ["x" * 10_000], ["x" * 10_001]),
        ("suppress_tokens", [[], None], ["many"]),
    ],
)
async def test_a_field_has_the_range_that_is_documented(client, field, accepted, refused):
    for value in accepted:
        assert (await ask_tra(client, **{field: value})).status_code == 200, value
    for value in refused:
        assert (await ask_tra(client, **{field: value})).status_code == 422, value


@pytest.mark.parametrize(
    "request_json",
    [
        "not json",
        "[]",
        "{}",
        '{"settings":null}',
        '{"settings":{"tasks":[]}}',
        '{"settings":{"tasks":["sing"]}}',
        '{"settings":{"tra":{"patience":NaN}}}',
        '{"settings":{"dia":{"min_speakers":3,"max_speakers":2}}}',
        '{"settings":{},"format_output":"xml"}',
        "[" * 100_000,
    ],
)
async def test_a_payload_that_breaks_the_schema_is_answered_with_what_is_wrong(
    client, service, request_json
):
    answer = await ask(client, request_json)
    assert answer.status_code == 422
    body = answer.json()
    assert body["code"] == "invalid_request"
    assert body["detail"].startswith("Invalid 'request_json' payload: ")
    assert len(body["detail"]) < 3000
    assert service.calls == []


# ---------------------------------------------------------------- which model


@pytest.mark.parametrize("name", ["large-v3-turbo", "whisper-1", "openai/turbo"])
async def test_a_model_may_be_named_by_id_or_alias(client, service, name):
    service.default_models["transcribe"] = "small"
    await ask_tra(client, model=name)
    assert service.options.transcribe.model == "large-v3-turbo"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"tra": {"model": "no-such-model"}}, "model_not_found"),
        ({"tra": {"model": "vosk-ru"}}, "model_not_found"),  # known, but its family does not run
        ({"tra": {"model": "pyannote"}}, "invalid_request"),
        ({"tasks": ["diarization"], "dia": {"model": "small"}}, "invalid_request"),
        ({"tasks": ["emotion"], "emo": {"model_name": "small"}}, "invalid_request"),
        ({"tasks": ["emotion"], "emo": {"model_name": "nope"}}, "model_not_found"),
    ],
)
async def test_a_model_that_cannot_do_the_task_is_refused_before_any_work(
    client, service, settings, code
):
    answer = await ask(client, {"settings": settings})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert service.calls == []


async def test_a_task_that_no_deployment_does_is_refused(client, service):
    del service.default_models["diarization"]
    answer = await ask(client, {"settings": {"tasks": ["transcribe", "diarization"]}})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_enabled")
    assert service.calls == []


@pytest.mark.parametrize(
    ("name", "model"), [("gigaam_emo", "emo"), (None, "emo"), ("other-emo", "other-emo")]
)
async def test_the_old_name_of_the_emotion_model_means_the_default_one(
    client, service, name, model
):
    await ask(client, {"settings": {"tasks": ["emotion"], "emo": {"model_name": name}}})
    assert service.options.emotion.model == model


async def test_a_job_is_refused_and_never_processed_silently(client, service):
    answer = await ask(client, {"settings": {}, "async_process": True})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_enabled")
    assert service.calls == []


# ---------------------------------------------------------------- the form


async def test_an_empty_file_is_refused(client, service):
    answer = await ask(client, {"settings": {}}, audio=b"")
    assert answer.status_code == 400
    assert answer.json() == {"detail": "Empty audio file provided.", "code": "empty_audio"}
    assert service.calls == []


async def test_missing_parts_are_listed(client):
    answer = await client.post("/v1/process", files={"other": ("a", b"x")})
    body = answer.json()
    assert answer.status_code == 422
    assert body["code"] == "invalid_request"
    assert [(e["type"], e["loc"]) for e in body["detail"]] == [("missing", ["body", "audio"])]


@pytest.mark.parametrize(("content_type", "status"), [("application/json", 415), (None, 422)])
async def test_a_body_that_is_neither_form_nor_audio_is_refused(client, content_type, status):
    headers = {"content-type": content_type} if content_type else {}
    answer = await client.post("/v1/process", content=b"{}", headers=headers)
    assert answer.status_code == status
    assert "audio" in answer.text


@pytest.mark.parametrize(
    ("boundary", "body"),
    [("", b""), ("; boundary=x", b"no form at all"), ("; boundary=x", b"--x\r\n\r\nnameless\r\n")],
)
async def test_a_broken_form_is_refused(client, boundary, body):
    headers = {"content-type": f"multipart/form-data{boundary}"}
    answer = await client.post("/v1/process", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_request"


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "речь.wav", "a" * 500])
async def test_the_file_name_does_not_matter(client, service, name):
    part = 'Content-Disposition: form-data; name="{}"'
    body = (
        f'--x\r\n{part.format("audio")}; filename="{name}"\r\n\r\nRIFF\r\n'
        f'--x\r\n{part.format("request_json")}\r\n\r\n{{"settings":{{}}}}\r\n--x--\r\n'
    )
    answer = await client.post(
        "/v1/process",
        content=body.encode(),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 200
    assert service.calls[0][0] == b"RIFF"


async def test_further_files_of_the_form_are_not_read(client, service):
    files = {"audio": ("a", b"first"), "audio1": ("b", b"second")}
    await client.post("/v1/process", files=files, data={"request_json": '{"settings":{}}'})
    assert [data for data, _ in service.calls] == [b"first"]


# ---------------------------------------------------------------- the page about it


@pytest.fixture(scope="module")
def api_page(repository: Path) -> str:
    return (repository / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_api_page_names_every_code_with_its_status(api_page):
    rows = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", api_page, re.MULTILINE))
    assert {(str(status), code) for code, status in STATUS.items()} <= rows


def test_the_api_page_names_every_setting(api_page):
    fields = [*TraSettings.model_fields, *DiaSettings.model_fields, *EmoSettings.model_fields]
    assert [name for name in fields if f"`{name}`" not in api_page] == []


def test_the_examples_of_the_api_page_are_valid(api_page):
    for text in re.findall(r"request_json='(.*)'", api_page):
        ProcessRequest.parse(text)
    answers = re.findall(r"```json\n(\{\n.*?)```", api_page, re.DOTALL)
    assert len(answers) == 2
    for text in answers:
        TypeAdapter(ProcessResponse).validate_json(text, extra="forbid")
