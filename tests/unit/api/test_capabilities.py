"""What a model cannot do is an error of the dialect, or a warning."""

import json
from typing import Any

import pytest

from api.capabilities import check_capabilities, ignored_hints
from configs.catalogue import Catalogue
from speech.errors import InvalidRequest
from speech.ports import TranscribeOptions
from tests.unit.api.openai.realtime_client import PATH, update
from tests.unit.fake_service import FakeService, app_of, client_of, model
from tests.unit.live_service import STREAMING, UTTERANCES, WHISPER

FILE = ("a.wav", b"RIFF")
UNABLE = "Model 'english' does not translate; these do: small, medium."
UNKNOWN = "language: model 'english' does not know 'ru'; it knows en."


@pytest.fixture
def service() -> FakeService:
    """A service whose default model knows English alone and does not translate."""
    service = FakeService()
    service.catalogue = Catalogue.model_validate(
        {
            "models": [
                model("english", "whisper", languages=["en"]),
                model("small", "whisper", translation=True),
                model("medium", "whisper", translation=True),
                model("streaming", "onnx_asr", format="streaming_nemo_ctc", languages=["ru"]),
                model("steered", "onnx_asr", format="transducer",
                      options={"decoding_method": "modified_beam_search"}),
                model("pyannote", "diarization"),
            ]
        }
    )  # fmt: skip
    service.default_models["transcribe"] = "english"
    return service


def v1(**tra: Any) -> dict[str, str]:
    return {"request_json": json.dumps({"settings": {"tra": tra}})}


ROUTES = [
    ("/v1/audio/translations", "file", {"model": "whisper-1"}, {}),
    ("/api/transcribe", "file", {"task": "translate"}, {"language": "ru"}),
    ("/transcribe", "audio_file", {"task": "translate"}, {"language": "ru"}),
    ("/v1/process", "audio", v1(task="translate"), v1(language="ru")),
    ("/v1/audio/transcriptions", "file", {}, {"model": "whisper-1", "language": "ru"}),
]
TRANSLATIONS = [(path, file, form) for path, file, form, _ in ROUTES if form]
RUSSIAN = [(path, file, form) for path, file, _, form in ROUTES if form]


async def refusal(service: FakeService, path: str, file: str, form: dict[str, str]) -> str:
    """The answer to a request that is refused before anything is recognised."""
    async with client_of(app_of(service)) as client:
        answer = await client.post(path, files={file: FILE}, data=form)
    assert answer.status_code in (400, 422)
    assert service.calls == []
    return answer.text


@pytest.mark.parametrize(("path", "file", "form"), TRANSLATIONS)
async def test_a_translation_by_a_model_that_cannot_is_an_error_that_names_those_that_can(
    service: FakeService, path: str, file: str, form: dict[str, str]
) -> None:
    assert UNABLE in await refusal(service, path, file, form)


@pytest.mark.parametrize(("path", "file", "form"), RUSSIAN)
async def test_a_language_that_the_model_does_not_know_is_an_error_that_lists_those_it_knows(
    service: FakeService, path: str, file: str, form: dict[str, str]
) -> None:
    assert UNKNOWN in (await refusal(service, path, file, form)).replace('\\"', '"')


async def test_a_model_that_translates_is_asked_to(service: FakeService) -> None:
    async with client_of(app_of(service)) as client:
        form = {"model": "small"}
        answer = await client.post("/v1/audio/translations", files={"file": FILE}, data=form)
    assert answer.status_code == 200
    assert service.options.transcribe.task == "translate"


async def test_where_no_model_translates_the_error_states_that(service: FakeService) -> None:
    models = [m for m in service.catalogue.models if not m.translation]
    service.catalogue = Catalogue(models=tuple(models))
    async with client_of(app_of(service)) as client:
        form = {"model": "whisper-1"}
        answer = await client.post("/v1/audio/translations", files={"file": FILE}, data=form)
    assert "no model that is served here does" in answer.json()["error"]["message"]


async def test_speakers_are_found_whatever_the_recogniser_could_not_do(
    service: FakeService,
) -> None:
    settings = {"tasks": ["diarization"], "tra": {"task": "translate", "language": "ru"}}
    form = {"request_json": json.dumps({"settings": settings})}
    async with client_of(app_of(service)) as client:
        answer = await client.post("/v1/process", files={"audio": FILE}, data=form)
    assert answer.status_code == 200, answer.text


async def test_the_list_of_models_states_what_each_can_do(service: FakeService) -> None:
    service.families = {"whisper", "onnx_asr", "diarization"}
    async with client_of(app_of(service)) as client:
        models = {m["id"]: m for m in (await client.get("/v1/models")).json()["data"]}
        one = (await client.get("/v1/models/small")).json()
    names = ("translation", "word_timestamps", "streaming", "hotwords")
    assert {id: [m[name] for name in names] for id, m in models.items()} == {
        "english": [False, True, False, True],
        "small": [True, True, False, True],
        "medium": [True, True, False, True],
        "streaming": [False, True, True, False],
        "steered": [False, True, False, True],
        "pyannote": [False, False, False, False],
    }
    assert models["english"]["languages"] == ["en"]
    assert one["translation"] is True


# Live streams


@pytest.mark.parametrize("name", [STREAMING, UTTERANCES, WHISPER])
async def test_a_native_stream_in_a_language_that_the_model_does_not_know_is_refused(
    quick: Any, name: str
) -> None:
    async with quick.connect() as client:
        await client.send({"type": "start", "model": name, "language": "de"})
        (error,) = await client.rest()
    assert (error["type"], error["code"]) == ("error", "invalid_request")
    assert "does not know 'de'; it knows ru, en." in error["message"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (WHISPER, None),
        (
            STREAMING,
            [
                f"language: model '{STREAMING}' detects it and ignores the hint",
                f"hotwords: model '{STREAMING}' takes none",
                f"initial_prompt: model '{STREAMING}' takes none",
            ],
        ),
    ],
)
async def test_hints_that_the_model_of_a_native_stream_does_not_use_are_warnings(
    quick: Any, name: str, expected: list[str] | None
) -> None:
    hints = {"language": "ru", "hotwords": "one", "initial_prompt": "Hello"}
    async with quick.connect() as client:
        await client.send({"type": "start", "model": name, **hints})
        ready = await client.receive()
        await client.send({"type": "end"})
        await client.rest()
    assert ready["type"] == "ready"
    assert ready.get("warnings") == expected


@pytest.mark.parametrize("name", [STREAMING, UTTERANCES, WHISPER])
async def test_a_v1_stream_that_should_translate_is_refused_where_the_model_cannot(
    quick: Any, name: str
) -> None:
    async with quick.connect() as client:
        await client.send({"settings": {"tra": {"model": name, "task": "translate"}}})
        (answer,) = await client.rest()
    assert f"Model '{name}' does not translate" in answer["error"]


async def test_a_realtime_session_does_not_begin_in_a_language_that_the_model_does_not_know(
    quick: Any,
) -> None:
    async with quick.connect(PATH) as client:
        assert (await client.receive())["type"] == "session.created"
        await client.send(update(transcription={"model": WHISPER, "language": "de"}))
        answer = await client.receive()
    assert answer["type"] == "error"
    assert "does not know 'de'" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [(WHISPER, {"prompt": "Hello", "keywords": ["Ann"]}), (STREAMING, {"prompt": ""})],
)
async def test_a_realtime_session_shows_the_hints_that_its_model_takes(
    quick: Any, name: str, shown: dict[str, Any]
) -> None:
    async with quick.connect(PATH) as client:
        await client.receive()
        hints = {"model": name, "prompt": "Hello", "keywords": ["Ann"]}
        await client.send(update(transcription=hints))
        answer = await client.receive()
    assert answer["type"] == "session.updated", answer
    transcription = answer["session"]["audio"]["input"]["transcription"]
    assert {n: v for n, v in transcription.items() if n in ("prompt", "keywords")} == shown


def test_a_model_that_does_not_detect_the_language_asks_for_it_before_the_file_is_decoded() -> None:
    canary = model("canary", "onnx_asr", format="nemo-conformer-aed", languages=["ru", "en"],
                   translation=True)  # fmt: skip
    catalogue = Catalogue.model_validate({"models": [canary]})
    (entry,) = catalogue.models
    with pytest.raises(InvalidRequest, match="'canary' does not detect it; name one of ru, en"):
        check_capabilities(entry, TranscribeOptions(), catalogue, {"onnx_asr"})
    named = TranscribeOptions(language="ru", task="translate")
    check_capabilities(entry, named, catalogue, {"onnx_asr"})
    assert list(ignored_hints(entry, named)) == []
