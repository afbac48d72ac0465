"""OpenAI's audio API: fields, models, and the page about them."""

from pathlib import Path

import openai
import pytest
from pydantic import TypeAdapter

from api.openai import responses as rendered
from api.openai.requests import DiarizationForm, TranscriptionForm, TranslationForm
from configs.settings import OPENAI_MODELS
from speech.ports import DEFAULT_TEMPERATURES, EmotionOptions, TranscribeOptions
from speech.transcript import EmotionSpan, Segment, Transcript
from tests.unit.openai_service import CALM, FILE, TEXT, problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


# ---------------------------------------------------------------- what may be asked


async def test_every_field_reaches_the_graph(api, service):
    await api.transcribe(
        model="small",
        language="EN",
        prompt="Dear Ann",
        temperature=0.6,
        chunking_strategy={
            "type": "server_vad",
            "prefix_padding_ms": 100,
            "silence_duration_ms": 700,
            "threshold": 0.7,
        },
        keywords=["Zurab", "Vosk"],
        extra_body={"hotwords": "Ann", "emotion": "sentence", "vad_filter": True},
    )
    assert service.options.transcribe == TranscribeOptions(
        model="small",
        language="en",
        initial_prompt="Dear Ann",
        temperature=(0.6,),
        hotwords="Ann, Zurab, Vosk",
        vad_filter=True,
        vad_parameters={"speech_pad_ms": 100, "min_silence_duration_ms": 700, "threshold": 0.7},
    )
    assert service.options.emotion == EmotionOptions("emo", "sentence")
    assert service.options.tasks == {"transcribe", "emotion"}
    assert service.calls[0][0] == b"RIFF"


async def test_without_any_field_the_defaults_of_the_recogniser_hold(api, service):
    assert (await api.transcribe(temperature=0)).text == TEXT
    assert service.options.transcribe == TranscribeOptions(
        model="large-v3-turbo", word_timestamps=False, temperature=DEFAULT_TEMPERATURES
    )


@pytest.mark.parametrize(
    ("value", "parameters"),
    [
        ("auto", None),
        ('{"type": "server_vad"}', None),
        ('{"type": "server_vad", "threshold": 0.4}', {"threshold": 0.4}),
    ],
)
async def test_a_chunking_strategy_turns_voice_activity_detection_on(
    api, service, value, parameters
):
    assert (await api.post(chunking_strategy=value)).status_code == 200
    assert service.options.transcribe.vad_filter
    assert service.options.transcribe.vad_parameters == parameters


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
async def test_lists_may_be_named_with_and_without_brackets(api, name):
    answer = await api.post(response_format="verbose_json", **{name: ["word"]})
    assert "words" in answer.json()


async def test_one_possible_language_is_the_language_and_several_are_a_warning(api, service):
    await api.post(**{"languages[]": ["ru"]})
    assert service.options.transcribe.language == "ru"
    answer = (await api.post(**{"languages[]": ["ru", "en"]})).json()
    assert service.calls[1][1].transcribe.language is None
    assert answer["warnings"] == [
        "languages[]: the language is detected among all that the model knows"
    ]


async def test_an_unknown_field_is_named_in_a_warning(api):
    answer = (await api.post(languge="ru")).json()
    assert answer["warnings"] == ["the field 'languge' is not known here"]


async def test_emotions_stand_beside_the_text_and_in_the_segments(api, service):
    service.answer = Transcript(
        1.0,
        segments=(Segment(0.0, 1.0, " Hm.", speaker="SPEAKER_04", emotion=CALM),),
        emotions=(EmotionSpan(0.0, 1.0, CALM, "SPEAKER_04"),),
    )
    answer = (await api.post(response_format="diarized_json", emotion="speaker")).json()
    assert answer["segments"][0]["emotion"] == CALM
    assert answer["emotions"] == [{"start": 0.0, "end": 1.0, "emotion": CALM, "speaker": "A"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "1.1"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"stream": "maybe"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"stream": "true", "response_format": "verbose_json"}, "stream"),
        ({"include[]": "everything"}, "include[]"),
        ({"include[]": "logprobs", "response_format": "verbose_json"}, "include[]"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        (
            {"timestamp_granularities[]": "day", "response_format": "verbose_json"},
            "timestamp_granularities[]",
        ),
        ({"chunking_strategy": "manual"}, "chunking_strategy"),
        ({"chunking_strategy": "{"}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": "server_vad", "eagerness": 1}'}, "chunking_strategy"),
        ({"chunking_strategy[type]": "semantic_vad"}, "chunking_strategy"),
        ({"chunking_strategy": "auto", "vad_filter": "false"}, "vad_filter"),
        ({"known_speaker_names[]": ["Ann"]}, "known_speaker_names[]"),
        ({"known_speaker_references[]": ["data:audio/wav;base64,AA=="]},
         "known_speaker_references[]"),
        ({"emotion": "mood"}, "emotion"),
        ({"emotion": "word", "response_format": "text"}, "emotion"),
        ({"language": "x" * 33}, "language"),
    ],
)  # fmt: skip
async def test_a_field_that_cannot_be_honoured_is_named(api, service, fields, param):
    answer = await api.post(**fields)
    error = problem(answer)
    assert answer.status_code == 400
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error", param, "invalid_value",
    )  # fmt: skip
    assert param in error["message"]
    assert service.calls == []


async def test_known_speakers_are_refused_where_speakers_are_found_too(api):
    answer = await api.post("diarization", **{"known_speaker_names[]": ["Ann"]})
    assert (answer.status_code, problem(answer)["param"]) == (400, "known_speaker_names[]")


@pytest.mark.parametrize("path", ["transcriptions", "translations", "diarization"])
async def test_a_file_that_is_missing_is_named(api, path):
    answer = await api.http.post(
        f"/audio/{path}", files={"other": FILE}, data={"model": "whisper-1"}
    )
    error = problem(answer)
    assert (answer.status_code, error["param"]) == (400, "file")
    assert error["code"] == "missing_required_parameter"


@pytest.mark.parametrize("form", [{}, {"model": ""}], ids=["missing", "empty"])
@pytest.mark.parametrize(
    ("path", "default"),
    [
        ("transcriptions", "large-v3-turbo"),
        ("translations", "large-v3-turbo"),
        ("diarization", "pyannote"),
    ],
)
async def test_without_a_model_the_default_is_used(api, service, path, default, form):
    answer = await api.http.post(f"/audio/{path}", files={"file": FILE}, data=form)
    assert answer.status_code == 200, answer.text
    options = service.options
    assert (options.diarize if path == "diarization" else options.transcribe).model == default


async def test_a_body_that_is_no_form_is_refused(api):
    answer = await api.http.post("/audio/transcriptions", json={"model": "whisper-1"})
    assert (answer.status_code, problem(answer)["type"]) == (400, "invalid_request_error")


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", OPENAI_MODELS)
async def test_openais_names_mean_the_default_models(api, service, name):
    service.default_models["transcribe"] = "small"
    await api.transcribe(model=name)
    assert service.options.transcribe.model == "small"
    assert (await api.sdk.models.retrieve(name)).id == "small"


async def test_the_operator_maps_names_to_models(service):
    async with serving(service, openai_aliases={"fast": "small"}) as api:
        await api.transcribe(model="fast")
        assert (await api.sdk.models.retrieve("fast")).id == "small"
        with pytest.raises(openai.NotFoundError):
            await api.transcribe(model="gpt-4o-transcribe")
    assert service.options.transcribe.model == "small"


async def test_models_are_listed_as_openais_client_expects_them(api):
    models = [model async for model in api.sdk.models.list()]
    turbo = models[0]
    assert (turbo.id, turbo.object, turbo.owned_by) == ("large-v3-turbo", "model", "Systran")
    assert isinstance(turbo.created, int)
    names = (turbo.model_extra or {})["aliases"]
    assert names[:2] == ["whisper-1", "openai/turbo"]
    assert set(OPENAI_MODELS) < set(names)


async def test_an_unknown_model_is_not_found(api, service):
    for asked in (api.transcribe(model="gpt-9"), api.sdk.models.retrieve("gpt-9")):
        with pytest.raises(openai.NotFoundError) as raised:
            await asked
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert service.calls == []


async def test_a_model_of_another_kind_is_refused(api, service):
    with pytest.raises(openai.BadRequestError, match="cannot do 'transcribe'"):
        await api.transcribe(model="pyannote")
    assert service.calls == []


async def test_speakers_are_refused_where_no_model_finds_them(api, service):
    del service.default_models["diarization"]
    with pytest.raises(openai.BadRequestError) as raised:
        await api.transcribe(response_format="diarized_json")
    assert raised.value.code == "not_enabled"


# ---------------------------------------------------------------- the page about it


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "api" / "openai.md").read_text(encoding="utf-8")


async def test_the_page_names_every_field_and_every_model(page):
    forms = (TranscriptionForm, TranslationForm, DiarizationForm)
    fields = {name for form in forms for name in form.model_fields}
    assert [name for name in (*fields, *OPENAI_MODELS) if f"`{name}" not in page] == []


async def test_the_answers_of_the_page_are_valid(page):
    for shape in ("Transcription", "TranscriptionVerbose", "TranscriptionDiarized",
                  "DiarizationResult"):  # fmt: skip
        (_, text) = page.split(f"<!-- {shape} -->\n```json\n")
        answer, _, _ = text.partition("```")
        TypeAdapter(getattr(rendered, shape)).validate_json(answer, extra="forbid")
