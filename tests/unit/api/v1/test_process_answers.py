"""The v1 dialect: answers and errors of ``POST /v1/process``."""

import logging
import math

import pytest
from pydantic import TypeAdapter

from api.errors import STATUS
from api.v1.responses import ProcessResponse
from speech import errors
from speech.errors import EngineFailed, ModelUnavailable, Overloaded, SpeechError
from speech.transcript import BranchError, EmotionSpan, Segment, Transcript, Turn, Word
from tests.unit.fake_service import FakeService, app_of, client_of
from tests.unit.process_requests import ask, ask_tra

SCORES = {"angry": 0.1, "sad": 0.2, "neutral": 0.3, "positive": 0.4}
TRANSCRIPT = Transcript(
    duration=2.5,
    language="ru",
    segments=(
        Segment(
            0.0,
            1.012,
            " Привет, мир.",
            (
                Word(" Привет,", 0.0, 0.432, 0.98, "SPEAKER_00"),
                Word(" мир.", 0.5, 1.012, None, "SPEAKER_00"),
            ),
            speaker="SPEAKER_00",
            emotion=SCORES,
        ),
        Segment(1.5, 2.0, " Да.", (Word(" Да.", 1.5, 2.0, 0.5),)),
    ),
    turns=(Turn(0.03, 1.046, "SPEAKER_00"),),
    emotions=(EmotionSpan(0.0, 0.432, SCORES, "SPEAKER_00"),),
    models={"transcribe": "large-v3-turbo"},
    stage_seconds={"decode": 0.1},
    warnings=("something to know",),
)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService):
    async with client_of(app_of(service)) as client:
        yield client


# ---------------------------------------------------------------- what is answered


async def test_the_json_answer_has_four_keys_and_three_blocks(client, service):
    service.answer = TRANSCRIPT
    body = (await ask(client, {"settings": {"tasks": ["transcribe", "diarization"]}})).json()
    result = body.pop("result")
    assert body == {"status": "completed", "job_id": None, "error": None}
    who = "SPEAKER_00"
    first = [
        {"start": 0.0, "end": 0.432, "word": " Привет,", "confidence": 0.98, "speaker": who},
        {"start": 0.5, "end": 1.012, "word": " мир.", "confidence": None, "speaker": who},
    ]
    second = [{"start": 1.5, "end": 2.0, "word": " Да.", "confidence": 0.5, "speaker": None}]
    assert result["tra"] == {
        "chunks": [
            {"alternatives": [{"words": first}], "channelTag": "1"},
            {"alternatives": [{"words": second}], "channelTag": "1"},
        ],
        "text": "Привет, мир. Да.",
        "language": "ru",
        "segments": [
            {
                "start": 0.0,
                "end": 1.012,
                "text": "Привет, мир.",
                "speaker": who,
                "emotion": SCORES,
                "channelTag": "1",
            },
            {
                "start": 1.5,
                "end": 2.0,
                "text": "Да.",
                "speaker": None,
                "emotion": None,
                "channelTag": "1",
            },
        ],
    }
    assert result["dia"] == {"turns": [{"start": 0.03, "end": 1.046, "speaker": who}]}
    assert result["emo"] == {
        "segments": [{"start": 0.0, "end": 0.432, "emotional": SCORES, "speaker": who}]
    }
    assert result["duration"] == 2.5
    assert result["models"] == {"transcribe": "large-v3-turbo"}
    assert result["stage_seconds"] == {"decode": 0.1}
    assert result["warnings"] == ["something to know"]
    assert result["errors"] == []


async def test_a_block_that_was_not_asked_for_is_null(client, service):
    service.answer = Transcript(1.0, segments=())
    result = (await ask(client, {"settings": {}})).json()["result"]
    assert result["tra"] == {"chunks": [], "text": "", "language": None, "segments": []}
    assert result["dia"] is None
    assert result["emo"] is None


async def test_the_channel_tag_counts_channels_from_one(client, service):
    service.answer = Transcript(
        1.0, segments=tuple(Segment(0, 1, "да", channel=channel) for channel in (None, 0, 1))
    )
    tra = (await ask(client, {"settings": {}})).json()["result"]["tra"]
    assert [chunk["channelTag"] for chunk in tra["chunks"]] == ["1", "1", "2"]
    assert [segment["channelTag"] for segment in tra["segments"]] == ["1", "1", "2"]


async def test_without_word_timestamps_there_are_no_words_but_the_text_is_there(client, service):
    service.answer = TRANSCRIPT
    tra = (await ask_tra(client, word_timestamps=False)).json()["result"]["tra"]
    assert [chunk["alternatives"] for chunk in tra["chunks"]] == [[{"words": []}]] * 2
    assert tra["text"] == "Привет, мир. Да."
    assert len(tra["segments"]) == 2


async def test_a_confidence_that_is_no_number_becomes_null(client, service):
    words = (Word("да", 0, 1, math.nan), Word("да", 0, 1, math.inf))
    service.answer = Transcript(1.0, segments=(Segment(0, 1, "да", words),))
    answer = (await ask(client, {"settings": {}})).json()
    (chunk,) = answer["result"]["tra"]["chunks"]
    assert [w["confidence"] for w in chunk["alternatives"][0]["words"]] == [None, None]


async def test_the_text_answer_has_only_what_was_asked_for(client, service):
    service.answer = TRANSCRIPT
    text = {"start": 0.0, "end": 2.5, "text": "Привет, мир. Да."}
    only = await ask(client, {"settings": {}, "format_output": "text"})
    assert only.json()["result"] == {"tra": text}
    request = {"settings": {"tasks": ["transcribe", "diarization", "emotion"]}}
    plain = (await ask(client, request)).json()["result"]
    every = (await ask(client, request | {"format_output": "text"})).json()["result"]
    assert every == {"tra": text, "dia": plain["dia"], "emo": plain["emo"]}


@pytest.mark.parametrize("format_output", ["json", "text"])
async def test_the_answer_matches_openapi(client, service, format_output):
    service.answer = TRANSCRIPT
    tasks = ["transcribe", "diarization", "emotion"]
    request = {"settings": {"tasks": tasks}, "format_output": format_output}
    answer = await ask(client, request)
    parsed = TypeAdapter(ProcessResponse).validate_json(answer.content, extra="forbid")
    assert parsed == answer.json()


# ---------------------------------------------------------------- partial results

DIARIZATION_FAILED = BranchError("diarization", "engine_failed", "no turns today")


@pytest.mark.parametrize(
    "request_body",
    [
        {"settings": {"tasks": ["transcribe", "diarization"]}, "partial_results": True},
        {"settings": {"tasks": ["transcribe", "diarization"], "partial_results": True}},
    ],
)
async def test_partial_results_carry_what_succeeded_and_an_error_per_failed_task(
    client, service, request_body
):
    service.answer = Transcript(1.0, segments=(), errors=(DIARIZATION_FAILED,))
    for format_output in ("json", "text"):
        answer = await ask(client, request_body | {"format_output": format_output})
        body = answer.json()
        assert answer.status_code == 200
        assert body["status"] == "completed"
        assert body["result"]["tra"] is not None
        assert body["result"]["dia"] is None
        assert body["result"]["errors"] == [
            {"task": "diarization", "code": "engine_failed", "message": "no turns today"}
        ]
    assert all(options.partial_results for _, options in service.calls)


async def test_partial_results_of_which_none_succeeded_are_an_error(client, service):
    busy = BranchError("transcribe", "overloaded", "queue is full")
    service.answer = Transcript(1.0, errors=(busy, DIARIZATION_FAILED))
    answer = await ask(client, {"settings": {}, "partial_results": True})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json() == {
        "detail": "transcribe: queue is full; diarization: no turns today",
        "code": "overloaded",
    }


# ---------------------------------------------------------------- errors


def family() -> list[type[SpeechError]]:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, SpeechError)]
    assert len(found) > 10
    return found


@pytest.mark.parametrize("kind", family())
async def test_every_error_of_the_family_has_its_status_and_code(client, service, kind):
    service.answer = kind("what went wrong")
    answer = await ask(client, {"settings": {}})
    body = answer.json()
    assert answer.status_code == STATUS[kind.code]
    assert body["code"] == kind.code
    if kind is not SpeechError:
        assert body["detail"].endswith("what went wrong")
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)


@pytest.mark.parametrize("kind", [Overloaded, ModelUnavailable])
@pytest.mark.parametrize(("retry_after_s", "header"), [(0.1, "1"), (2.0, "2"), (7.2, "8")])
async def test_a_busy_service_gives_the_time_to_retry(client, service, kind, retry_after_s, header):
    service.answer = kind("full", retry_after_s=retry_after_s)
    answer = await ask(client, {"settings": {}})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, header)


async def test_a_failure_of_a_model_has_the_text_of_the_v1_api(client, service):
    service.answer = EngineFailed("the recogniser gave up")
    answer = await ask(client, {"settings": {}})
    assert answer.json() == {
        "detail": "Synchronous processing failed: the recogniser gave up",
        "code": "engine_failed",
    }


async def test_an_unknown_exception_is_logged_with_the_request_id_and_withheld(
    client, service, caplog
):
    service.answer = RuntimeError("/secret/path")
    with caplog.at_level(logging.ERROR):
        answer = await client.post(
            "/v1/process",
            files={"audio": ("a", b"x")},
            data={"request_json": '{"settings":{}}'},
            headers={"X-Request-ID": "req-7"},
        )
    assert answer.status_code == 500
    assert answer.json() == {
        "detail": "Synchronous processing failed: internal error in request req-7",
        "code": "internal_error",
    }
    assert answer.headers["X-Request-ID"] == "req-7"
    assert "req-7" in caplog.text
    assert "/secret/path" in caplog.text
