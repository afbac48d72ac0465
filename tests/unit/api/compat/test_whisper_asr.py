"""The simple Whisper server: `POST /transcribe`, by the conformance list of its protocol."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from api.compat.whisper_asr import MAX_CLIP_TIMES, AsrOptions
from speech.errors import (
    EngineFailed,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    SpeechError,
    UnsupportedAudio,
)
from speech.ports import TranscribeOptions
from speech.transcript import Segment, Transcript, Word
from tests.unit.fake_service import FakeService, app_of, client_of

TRANSCRIPT = Transcript(
    duration=2.5,
    language="ru",
    segments=(
        Segment(
            0.0,
            1.0,
            " Привет,",
            (Word(" Привет,", 0.0, 1.0, 0.98),),
            tokens=(50364, 12),
            seek=0,
            temperature=0.0,
            avg_logprob=-0.25,
            compression_ratio=1.1,
            no_speech_prob=0.01,
        ),
        Segment(1.5, 2.0, " мир.", (Word(" мир.", 1.5, 2.0, None),)),
    ),
)
AUDIO = ("speech.wav", b"RIFF")

OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "language": ("RU", {"language": "ru"}),
    "task": ("translate", {"task": "translate"}),
    "temperature": (0.4, {"temperature": (0.4,)}),
    "beam_size": (3, {"beam_size": 3}),
    "best_of": (4, {"best_of": 4}),
    "compression_ratio_threshold": (2.0, {"compression_ratio_threshold": 2.0}),
    "logprob_threshold": (-0.5, {"log_prob_threshold": -0.5}),
    "no_speech_threshold": (0.3, {"no_speech_threshold": 0.3}),
    "condition_on_previous_text": (False, {"condition_on_previous_text": False}),
    "initial_prompt": ("Имена: Аня", {"initial_prompt": "Имена: Аня"}),
    "word_timestamps": (True, {"word_timestamps": True}),
    "prepend_punctuations": ("«", {"prepend_punctuations": "«"}),
    "append_punctuations": ("»", {"append_punctuations": "»"}),
    "clip_timestamps": ([0.0, 1.5], {"clip_timestamps": (0.0, 1.5)}),
    "hallucination_silence_threshold": (2.0, {"hallucination_silence_threshold": 2.0}),
}
"""Every option but format and speedup: a value, and what it makes of the defaults."""

DEFAULTS = {"model": "large-v3-turbo", "word_timestamps": False, "temperature": (0.0,)}


@pytest.fixture
def service() -> FakeService:
    service = FakeService()
    service.answer = TRANSCRIPT
    return service


@pytest.fixture
async def client(service: FakeService):
    async with client_of(app_of(service)) as client:
        yield client


async def ask(
    client: httpx.AsyncClient,
    query: dict[str, Any] | None = None,
    form: dict[str, Any] | None = None,
    **parts: Any,
) -> httpx.Response:
    files = {"audio_file": AUDIO} | parts
    return await client.post("/transcribe", params=query, data=form, files=files)


def as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [str(item) for item in value]
    return json.dumps(value) if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- options


async def test_a_file_alone_is_transcribed_with_the_defaults_of_the_original(client, service):
    assert (await ask(client)).status_code == 200
    ((audio, options),) = service.calls
    assert audio == b"RIFF"
    assert options.tasks == {"transcribe"}
    assert options.transcribe == TranscribeOptions(**DEFAULTS)
    assert options.speedup == 1.0


@pytest.mark.parametrize("place", ["query", "form", "json"])
@pytest.mark.parametrize("name", OPTIONS)
async def test_every_option_arrives_from_wherever_it_is_put(client, service, place, name):
    value, wanted = OPTIONS[name]
    assert set(OPTIONS) | {"format", "speedup"} == set(AsrOptions.model_fields)
    if place == "json":
        answer = await ask(client, form={"params": json.dumps({name: value})})
    else:
        answer = await ask(client, **{place: {name: as_text(value)}})
    assert answer.status_code == 200
    assert service.options.transcribe == TranscribeOptions(**(DEFAULTS | wanted))


async def test_the_query_goes_before_the_form_and_the_form_before_the_json_part(client, service):
    inner = {"language": "en", "task": "translate", "beam_size": 2}
    form = {"language": "ru", "task": "transcribe", "options": json.dumps(inner)}
    await ask(client, query={"language": "fr"}, form=form)
    options = service.options.transcribe
    assert (options.language, options.task, options.beam_size) == ("fr", "transcribe", 2)


@pytest.mark.parametrize(
    "part",
    [
        {"form": {"params": '{"language": "ru"}'}},
        {"form": {"whatever": ' {"language": "ru"}'}},
        {"json": ("options.json", b'{"language": "ru"}', "application/json")},
    ],
    ids=["params", "any name", "a file"],
)
async def test_the_json_part_has_any_name(client, service, part):
    assert (await ask(client, **part)).status_code == 200
    assert service.options.transcribe.language == "ru"


async def test_a_form_labelled_as_json_is_still_a_form(client, service):
    """What curl sends of the README's lines, which set that header, once they name a form."""
    form = httpx.Request(
        "POST", "http://speech", files={"audio_file": AUDIO}, data={"params": '{"beam_size": 2}'}
    )
    kind = form.headers["Content-Type"].replace("multipart/form-data", "application/json")
    body = await form.aread()
    answer = await client.post("/transcribe", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 200
    assert service.options.transcribe.beam_size == 2


@pytest.mark.parametrize(
    ("query", "clips"),
    [
        ("clip_timestamps=0,10,20", (0.0, 10.0, 20.0)),
        ("clip_timestamps=0&clip_timestamps=10", (0.0, 10.0)),
        ("clip_timestamps=0,1&clip_timestamps=2.5,3", (0.0, 1.0, 2.5, 3.0)),
        ("clip_timestamps=", "0"),
    ],
)
async def test_clips_are_a_list_or_whispers_own_notation(client, service, query, clips):
    assert (await ask(client, query=httpx.QueryParams(query))).status_code == 200
    assert service.options.transcribe.clip_timestamps == clips


@pytest.mark.parametrize("language", ["auto", "AUTO", ""])
async def test_auto_and_nothing_find_the_language(client, service, language):
    await ask(client, query={"language": language})
    assert service.options.transcribe.language is None


async def test_the_operator_sets_speed_and_language_of_requests_that_do_not(service):
    async with client_of(app_of(service, asr={"speedup": 1.25, "language": "ru"})) as client:
        await ask(client)
        await ask(client, query={"speedup": "1", "language": "auto"})
    (_, default), (_, explicit) = service.calls
    assert (default.speedup, default.transcribe.language) == (1.25, "ru")
    assert (explicit.speedup, explicit.transcribe.language) == (1.0, None)


@pytest.mark.parametrize("speedup", ["0.25", "1.25", "4"])
async def test_a_request_sets_its_own_speed(client, service, speedup):
    assert (await ask(client, form={"speedup": speedup})).status_code == 200
    assert service.options.speedup == float(speedup)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("query", "format", "xml"),
        ("form", "format", "xml"),
        ("query", "task", "sing"),
        ("query", "temperature", "hot"),
        ("query", "temperature", "nan"),
        ("query", "temperature", "2.1"),
        ("query", "beam_size", "0"),
        ("query", "beam_size", "65"),
        ("form", "best_of", "0"),
        ("query", "speedup", "0.24"),
        ("query", "speedup", "4.1"),
        ("form", "word_timestamps", "perhaps"),
        ("query", "hallucination_silence_threshold", "-1"),
        ("form", "initial_prompt", "a" * 10_001),
        ("query", "language", "a" * 33),
    ],
)
async def test_a_value_that_cannot_be_is_named_with_its_place(client, service, place, name, value):
    answer = await ask(client, **{place: {name: value}})
    assert answer.status_code == 422
    (wrong,) = answer.json()["detail"]
    assert wrong["loc"] == ["body" if place == "form" else "query", name]
    assert service.calls == []


async def test_a_wrong_value_in_the_json_part_is_named_with_the_part(client, service):
    answer = await ask(client, form={"params": '{"format": "xml"}'})
    assert answer.status_code == 422
    (wrong,) = answer.json()["detail"]
    assert (wrong["type"], wrong["loc"]) == ("literal_error", ["body", "params", "format"])
    assert service.calls == []


@pytest.mark.parametrize(
    "form",
    [
        {"params": '{"language": '},
        {"params": '{"language": "ru"}', "options": '{"language": "ru"}'},
    ],
    ids=["broken", "two of them"],
)
async def test_a_json_part_that_cannot_be_read_is_refused(client, service, form):
    assert (await ask(client, form=form)).status_code == 422
    assert service.calls == []


async def test_a_json_part_has_at_most_a_mebibyte(client, service):
    def part(size: int) -> tuple[str, bytes, str]:
        return ("o.json", b'{"beam_size": 2}'.ljust(size), "application/json")

    assert (await ask(client, o=part(1024**2))).status_code == 200
    assert (await ask(client, o=part(1024**2 + 1))).status_code == 422
    assert len(service.calls) == 1


async def test_clips_have_a_bound(client, service):
    clips = ",".join(map(str, range(MAX_CLIP_TIMES)))
    assert (await ask(client, form={"clip_timestamps": clips})).status_code == 200
    assert (await ask(client, form={"clip_timestamps": f"{clips},9999"})).status_code == 422


@pytest.mark.parametrize("name", ["_fields_set", "cls", "self", "options", "model_extra", "", "é"])
async def test_an_unknown_option_may_have_any_name(client, name):
    for place in ("query", "form"):
        assert (await ask(client, **{place: {name: "1"}})).status_code == 200
    assert (await ask(client, form={"params": json.dumps({name: 1})})).status_code == 200


async def test_unknown_options_are_listed_in_a_warning_and_change_nothing(client, service):
    answer = await ask(client, query={"languge": "ru"}, form={"params": '{"beam": 2}'})
    assert answer.status_code == 200
    assert json.loads(answer.headers["X-Speechgraph-Warnings"]) == [
        "the option 'beam' is not known here",
        "the option 'languge' is not known here",
    ]
    assert service.options.transcribe == TranscribeOptions(**DEFAULTS)


async def test_what_a_recogniser_does_not_honour_is_a_warning(client, service):
    service.answer = Transcript(1.0, segments=(), warnings=("no beams here",))
    answer = await ask(client, query={"format": "text"})
    assert json.loads(answer.headers["X-Speechgraph-Warnings"]) == ["no beams here"]


# ---------------------------------------------------------------- answers


async def test_json_is_the_whole_dictionary_of_whisper(client):
    answer = await ask(client)
    assert answer.headers["Content-Type"] == "application/json"
    assert "X-Speechgraph-Warnings" not in answer.headers
    first = {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": 1.0,
        "text": " Привет,",
        "tokens": [50364, 12],
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": 1.1,
        "no_speech_prob": 0.01,
    }
    body = answer.json()
    assert body == {"text": "Привет, мир.", "segments": body["segments"], "language": "ru"}
    assert body["segments"][0] == first
    assert set(body["segments"][1]) == set(first), "another recogniser has the same keys"


async def test_words_come_with_word_timestamps_alone(client):
    body = (await ask(client, query={"word_timestamps": "true"})).json()
    assert [s["words"] for s in body["segments"]] == [
        [{"word": " Привет,", "start": 0.0, "end": 1.0, "probability": 0.98}],
        [{"word": " мир.", "start": 1.5, "end": 2.0, "probability": None}],
    ]
    assert "words" not in (await ask(client)).json()["segments"][0]


@pytest.mark.parametrize("place", ["query", "form"])
async def test_simple_is_the_text_in_json(client, place):
    answer = await ask(client, **{place: {"format": "simple"}})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {"text": "Привет, мир."}


async def test_text_is_the_text_alone(client):
    answer = await ask(client, form={"params": '{"format": "text"}'})
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text == "Привет, мир."


async def test_silence_has_no_text_no_segments_and_no_language(client, service):
    service.answer = Transcript(1.0, segments=())
    assert (await ask(client)).json() == {"text": "", "segments": [], "language": None}


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "speech.wav", "речь.ogg"])
async def test_the_name_of_a_file_is_only_a_name(client, service, name):
    answer = await ask(client, audio_file=(name, b"RIFF"))
    assert (answer.status_code, service.calls[0][0]) == (200, b"RIFF")


async def test_two_uploads_of_one_name_do_not_meet(client, service):
    both = asyncio.Barrier(2)

    async def together() -> Transcript:
        await both.wait()
        return TRANSCRIPT

    service.answer = together
    async with asyncio.timeout(10):
        await asyncio.gather(
            *(ask(client, audio_file=("speech.wav", data)) for data in (b"one", b"two"))
        )
    assert {data for data, _ in service.calls} == {b"one", b"two"}


# ---------------------------------------------------------------- errors


async def test_a_missing_file_is_rendered_as_fastapi_does(client):
    answer = await client.post("/transcribe", files={"file": AUDIO})
    assert answer.status_code == 422
    assert answer.json()["detail"] == [
        {"type": "missing", "loc": ["body", "audio_file"], "msg": "Field required", "input": None}
    ]


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (UnsupportedAudio("no audio"), 415, "Ошибка транскрибации: no audio"),
        (InvalidRequest("language 'xx' is not known"), 422,
         "Ошибка транскрибации: language 'xx' is not known"),
        (EngineFailed("out of luck"), 500, "Ошибка транскрибации: out of luck"),
        (ModelUnavailable("turbo has no weights"), 503, "Модель не загружена"),
        (Overloaded("32 requests"), 503, "Ошибка транскрибации: 32 requests"),
    ],
)  # fmt: skip
async def test_a_failure_has_the_text_of_the_original_and_a_status_that_fits(
    client, service, error: SpeechError, status, detail
):
    service.answer = error
    answer = await ask(client)
    assert (answer.status_code, answer.json()) == (status, {"detail": detail, "code": error.code})
    assert ("Retry-After" in answer.headers) == (status == 503)


async def test_an_empty_file_is_refused(client, service):
    answer = await ask(client, audio_file=("empty.wav", b""))
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Ошибка транскрибации: ")
    assert service.calls == []


async def test_the_text_of_an_error_from_outside_the_family_is_withheld(client, service):
    service.answer = ValueError("secret")
    answer = await ask(client)
    assert answer.status_code == 500
    assert answer.json()["detail"].startswith("Ошибка транскрибации: ")
    assert "secret" not in answer.text


async def test_an_upload_has_its_bound(service):
    async with client_of(app_of(service, max_upload_bytes=1000)) as client:
        answer = await ask(client, audio_file=("a.wav", b"x" * 1000))
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("Ошибка транскрибации: ")


async def test_one_request_too_many_is_refused_before_its_body_is_read(service):
    release = asyncio.Event()

    async def wait() -> Transcript:
        await release.wait()
        return TRANSCRIPT

    service.answer = wait
    async with client_of(app_of(service, max_concurrent_requests=1)) as client:
        first = asyncio.create_task(ask(client))
        while not service.calls:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await ask(client)).status_code == 503
        release.set()
        assert (await first).status_code == 200
    assert len(service.calls) == 1


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_another_method_is_not_allowed(client, method):
    answer = await client.request(method, "/transcribe")
    assert (answer.status_code, answer.json()["detail"]) == (405, "Method Not Allowed")
