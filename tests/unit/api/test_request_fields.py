"""Every field of a request changes the options of the graph as it should, and no other option."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from api.compat.whisper_rest import TranscribeForm
from api.openai.requests import DiarizationForm, TranscriptionForm, TranslationForm
from api.v1.requests import DiaSettings, EmoSettings, ProcessRequest, Settings, TraSettings
from speech.pipeline import ProcessOptions
from tests.unit.fake_service import FakeService, app_of, client_of
from tests.unit.job_service import jobs_in

Changes = dict[str, Any]
"""What differs from the options of a request without the field, by dotted name."""

TRA: dict[str, tuple[Any, Any]] = {
    "model": ("small", "small"),
    "language": ("RU", "ru"),
    "language_detection_threshold": (0.9, 0.9),
    "language_detection_segments": (3, 3),
    "beam_size": (10, 10),
    "no_speech_threshold": (None, None),
    "word_timestamps": (False, False),
    "vad_filter": (True, True),
    "batch_size": (64, 64),
    "task": ("translate", "translate"),
    "initial_prompt": ("Слова", "Слова"),
    "log_progress": (True, True),
    "best_of": (1, 1),
    "patience": (2.0, 2.0),
    "length_penalty": (0.5, 0.5),
    "repetition_penalty": (1.5, 1.5),
    "no_repeat_ngram_size": (3, 3),
    "temperature": ([0.5, 1], (0.5, 1.0)),
    "compression_ratio_threshold": (None, None),
    "log_prob_threshold": (-2.0, -2.0),
    "condition_on_previous_text": (False, False),
    "prompt_reset_on_temperature": (0.1, 0.1),
    "prefix": ("Итак", "Итак"),
    "suppress_blank": (False, False),
    "suppress_tokens": ([1, 2], (1, 2)),
    "without_timestamps": (True, True),
    "max_initial_timestamp": (2.0, 2.0),
    "prepend_punctuations": ("(", "("),
    "append_punctuations": (")", ")"),
    "multilingual": (True, True),
    "vad_parameters": ({"threshold": 0.4}, {"threshold": 0.4}),
    "max_new_tokens": (100, 100),
    "chunk_length": (20, 20),
    "clip_timestamps": ([0, 1.5], (0.0, 1.5)),
    "hallucination_silence_threshold": (2.0, 2.0),
    "hotwords": ("Зураб", "Зураб"),
}
DIA: dict[str, Any] = {
    "model": "other-pyannote",
    "use_gpu": False,
    "stereo_mode": True,
    "num_speakers": 2,
    "min_speakers": 2,
    "max_speakers": 3,
}
EMO: dict[str, tuple[Any, Changes]] = {
    "analysis_level": ("sentence", {"emotion.level": "sentence"}),
    "model_name": ("other-emo", {"emotion.model": "other-emo"}),
}
PARTIAL: Changes = {"partial_results": True}
V1: list[tuple[str, Any, Changes]] = [
    *((f"settings.tra.{n}", sent, {f"transcribe.{n}": got}) for n, (sent, got) in TRA.items()),
    *((f"settings.dia.{n}", value, {f"diarize.{n}": value}) for n, value in DIA.items()),
    *((f"settings.emo.{n}", sent, changes) for n, (sent, changes) in EMO.items()),
    ("settings.tasks", ["transcribe", "diarization"], {
        "tasks": {"transcribe", "diarization"}, "emotion.model": None}),
    ("settings.partial_results", True, PARTIAL),
    ("partial_results", True, PARTIAL),
]  # fmt: skip
V1_OTHERS = {"format_output", "async_process", "idempotency_key", "webhook_url"}
"""Fields about the answer and the job."""

VAD = '{"type": "server_vad", "threshold": 0.7}'
SPEECH: dict[str, tuple[Any, Changes]] = {
    "model": ("small", {"transcribe.model": "small"}),
    "prompt": ("Dear Ann", {"transcribe.initial_prompt": "Dear Ann"}),
    "temperature": ("0.6", {"transcribe.temperature": (0.6,)}),
    "hotwords": ("Ann", {"transcribe.hotwords": "Ann"}),
    "vad_filter": ("true", {"transcribe.vad_filter": True}),
    "emotion": ("file", {
        "tasks": {"transcribe", "emotion"}, "emotion.level": "file", "emotion.model": "emo",
        "transcribe.word_timestamps": True}),
    "response_format": ("srt", {"transcribe.word_timestamps": True}),
}  # fmt: skip
TRANSCRIPTION = SPEECH | {
    "language": ("EN", {"transcribe.language": "en"}),
    "languages": ("en", {"transcribe.language": "en"}),
    "keywords": (["Zurab", "Vosk"], {"transcribe.hotwords": "Zurab, Vosk"}),
    "include": ("logprobs", {"transcribe.word_timestamps": True}),
    "chunking_strategy": (VAD, {
        "transcribe.vad_filter": True, "transcribe.vad_parameters": {"threshold": 0.7}}),
}  # fmt: skip
REST: dict[str, tuple[Any, Changes]] = {
    "model": ("small", {"transcribe.model": "small"}),
    "language": ("EN", {"transcribe.language": "en"}),
    "task": ("translate", {"transcribe.task": "translate"}),
}
FORMS: dict[str, tuple[type[BaseModel], dict[str, tuple[Any, Changes]], set[str]]] = {
    "/v1/audio/transcriptions": (
        TranscriptionForm, TRANSCRIPTION,
        # With verbose_json, with stream, and never, as other tests have it.
        {"timestamp_granularities", "stream", "known_speaker_names", "known_speaker_references"},
    ),
    "/v1/audio/translations": (TranslationForm, SPEECH, set()),
    "/v1/audio/diarization": (
        DiarizationForm, {"model": ("other-pyannote", {"diarize.model": "other-pyannote"})},
        {"response_format", "known_speaker_names", "known_speaker_references"},
    ),
    "/api/transcribe": (TranscribeForm, REST, set()),
}  # fmt: skip
"""The form of each route, its fields with a value and what that changes, and the other fields."""

ALL_TASKS = ["transcribe", "diarization", "emotion"]


def flat(options: ProcessOptions) -> Iterator[tuple[str, Any]]:
    for name, value in asdict(options).items():
        if name in ("transcribe", "diarize", "emotion"):
            yield from ((f"{name}.{inner}", found) for inner, found in value.items())
        else:
            yield name, value


async def changes(path: str, file: str, plain: Changes, changed: Changes) -> Changes:
    """How the options of the second form differ from those of the first."""
    service = FakeService()
    async with client_of(app_of(service)) as client:
        for form in (plain, changed):
            answer = await client.post(path, files={file: ("a.wav", b"RIFF")}, data=form)
            assert answer.status_code == 200, answer.text
    before, after = (dict(flat(options)) for _, options in service.calls)
    return {name: value for name, value in after.items() if value != before[name]}


def request_with(field: str, value: Any) -> tuple[str, str]:
    """``request_json`` that asks for everything, without the field and with it."""
    settings: dict[str, Any] = {"tasks": ALL_TASKS, "tra": {}, "dia": {}, "emo": {}}
    request: dict[str, Any] = {"settings": settings}
    plain = json.dumps(request)
    *blocks, name = field.split(".")
    target = request
    for block in blocks:
        target = target[block]
    target[name] = value
    return plain, json.dumps(request)


@pytest.mark.parametrize(("field", "value", "expected"), V1, ids=[field for field, *_ in V1])
async def test_a_field_of_request_json_reaches_the_graph(
    field: str, value: Any, expected: Changes
) -> None:
    plain, changed = ({"request_json": text} for text in request_with(field, value))
    assert await changes("/v1/process", "audio", plain, changed) == expected


async def test_every_field_of_request_json_reaches_the_graph_from_a_job(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path)
    service = FakeService()
    async with client_of(app_of(service, jobs.desk)) as client:
        for field, value, _ in V1:
            request = json.loads(request_with(field, value)[1]) | {"async_process": True}
            form = {"request_json": json.dumps(request)}
            answer = await client.post("/v1/process", files={"audio": b"RIFF"}, data=form)
            queued = jobs.desk.find("", answer.json()["job_id"])
            assert queued is not None
            asked = ProcessRequest.model_validate(request).options(service)
            assert ProcessRequest.parse(queued.request).options(service) == asked, field
    jobs.store.close()


ROWS = [(path, name, *row) for path, (_, rows, _) in FORMS.items() for name, row in rows.items()]


@pytest.mark.parametrize(
    ("path", "field", "value", "expected"), ROWS, ids=[f"{path} {name}" for path, name, *_ in ROWS]
)
async def test_a_field_of_a_form_reaches_the_graph(
    path: str, field: str, value: Any, expected: Changes
) -> None:
    model = "pyannote" if path.endswith("diarization") else "large-v3-turbo"
    plain = {"model": model}
    assert await changes(path, "file", plain, plain | {field: value}) == expected


def test_no_field_is_left_out() -> None:
    blocks = {"settings": Settings, "settings.tra": TraSettings, "settings.dia": DiaSettings,
              "settings.emo": EmoSettings}  # fmt: skip
    fields = set(ProcessRequest.model_fields)
    fields |= {f"{block}.{name}" for block, model in blocks.items() for name in model.model_fields}
    assert {field for field, *_ in V1} | set(blocks) | V1_OTHERS == fields
    for form, rows, others in FORMS.values():
        assert set(rows) | others | {"file"} == set(form.model_fields)
