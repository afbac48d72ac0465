"""What the measurement of Whisper rests on: its models, its callers and its report."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from faster_whisper import WhisperModel

from benchmarks.random_whisper import Shape, build
from benchmarks.whisper import ratios
from benchmarks.whisper_load import CLIP_S, OPTIONS, TOKENS, Report, Row, by_callers, cut, repeated
from speech.audio import SAMPLE_RATE


def test_a_random_model_decodes_the_same_number_of_tokens_in_every_window(tmp_path: Path) -> None:
    folder = build(tmp_path / "model", Shape(64, 4, 2, 2))
    model = WhisperModel(str(folder), device="cpu", compute_type="int8")
    noise = np.random.default_rng(2).normal(0, 0.1, 60 * SAMPLE_RATE).astype(np.float32)
    for samples in (noise, np.zeros(60 * SAMPLE_RATE, np.float32)):
        segments, _ = model.transcribe(samples, **OPTIONS)
        assert [len(segment.tokens) for segment in segments] == [TOKENS, TOKENS]
    written = (folder / "model.bin").stat().st_mtime_ns
    build(folder, Shape(64, 4, 2, 2))
    assert (folder / "model.bin").stat().st_mtime_ns == written


def test_clips_are_cut_from_the_start_on_and_over_again() -> None:
    samples = np.arange(5 * SAMPLE_RATE, dtype=np.float32)
    clips = cut(samples, 2, 3)
    assert [clip[0] / SAMPLE_RATE for clip in clips] == [0, 2, 0]
    assert all(len(clip) == 2 * SAMPLE_RATE for clip in clips)


def test_callers_run_at_once_and_each_clip_goes_to_one_of_them() -> None:
    together = threading.Barrier(3)
    seen: list[int] = []

    def call(number: int) -> None:
        together.wait(10)
        seen.append(number)
        time.sleep(0.002)

    row = by_callers("three", 3, call, 0)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]  # the first call of each is to warm up
    assert row.audio_s == 3 * CLIP_S
    assert row.wall_s >= row.latency_s >= 0.002


def test_work_is_repeated_after_a_call_to_warm_up() -> None:
    calls: list[int] = []
    row = repeated("work", 30, lambda: calls.append(1), 0.01)
    assert len(calls) > 2
    assert row.audio_s == 30 * (len(calls) - 1)


def test_a_report_keeps_every_row_and_compares_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    report = Report(path, {"size": "demo"})
    report.add(Row("engine in process, callers: 1", 60, 2.0, 1.0))
    assert json.loads(path.read_text("utf-8"))["rows"][0]["rtfx"] == 30
    report.add(Row("engine in process, callers: 8", 240, 4.0, 4.0, "same text"))
    report.add(Row("service, callers: 1", 60, 4.0, 2.0))
    report.add(Row("faster-whisper, one clip after another", 60, 3.0, 1.6))
    ratios(report, (1, 8))
    assert json.loads(path.read_text("utf-8"))["ratios"] == {
        "service, callers: 1 ÷ engine in process, callers: 1": 0.5,
        "service, callers: 1 ÷ faster-whisper, one clip after another, latency": 1.25,
        "engine in process, callers: 8 ÷ callers: 1": 2.0,
    }
    assert "engine in process, callers: 8 ÷ callers: 1" in capsys.readouterr().out
