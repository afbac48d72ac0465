"""No speech is lost between the windows of Whisper, and word times do not change the words."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_whisper.tokenizer import Tokenizer

from engines.whisper.coverage import in_file
from engines.whisper.engine import WhisperEngine
from engines.whisper.request_model import RequestModel
from speech.audio import SAMPLE_RATE, Samples
from speech.ports import TranscribeOptions
from speech.transcript import Recognition, Segment
from tests.unit.heldout import clips, conversation, load, wer

FAST = TranscribeOptions(beam_size=1, temperature=(0.0,), language="en")
BATCHED = replace(FAST, vad_filter=True)
MODES = pytest.mark.parametrize(
    "options",
    [FAST, BATCHED, replace(BATCHED, batch_size=1)],
    ids=["sequential", "batched", "sequential with vad"],
)


@pytest.fixture(scope="module")
def engine(repository: Path) -> WhisperEngine:
    """The Whisper of the demo pack, which has a window of 10 s."""
    path = repository / "models" / "demo" / "demo-whisper"
    return WhisperEngine(path, device="cpu", compute_type="auto", threads=1)


@pytest.fixture(scope="module")
def dialogue(demo_audio: Path) -> Samples:
    return load(demo_audio / "dialogue-en.flac")


def text(recognition: Recognition) -> str:
    return "".join(segment.text for segment in recognition.segments)


def test_the_batched_mode_recognises_all_windows_of_speech_without_a_pause(
    engine: WhisperEngine, demo_audio: Path
) -> None:
    english = [clip for clip in clips(demo_audio, count=16) if clip.language == "en"]
    samples = conversation(english, seconds=1, pause_s=0.0)
    found = engine.transcribe(samples, BATCHED)
    assert wer(" ".join(clip.text for clip in english), text(found)) < 0.1
    assert found.missed == ()


@pytest.mark.parametrize("times", [1, 3])
def test_speech_without_a_pause_keeps_its_words_with_vad(
    engine: WhisperEngine, assets: Path, times: int
) -> None:
    samples = np.tile(load(assets / "faults" / "nopause35.flac"), times)
    found = engine.transcribe(samples, replace(BATCHED, beam_size=5))
    assert len(text(found).split()) > 76 * times
    ends = [0.0, *(segment.end for segment in found.segments)]
    starts = [*(segment.start for segment in found.segments), len(samples) / SAMPLE_RATE]
    assert max(start - end for end, start in zip(ends, starts, strict=True)) < 8.0


@MODES
def test_the_times_of_words_do_not_change_the_words(
    engine: WhisperEngine, dialogue: Samples, options: TranscribeOptions
) -> None:
    timed = engine.transcribe(dialogue, options)
    plain = engine.transcribe(dialogue, replace(options, word_timestamps=False))
    assert [s.text for s in timed.segments] == [s.text for s in plain.segments]
    assert [s.tokens for s in timed.segments] == [s.tokens for s in plain.segments]
    assert all(segment.words for segment in timed.segments)
    assert not any(segment.words for segment in plain.segments)


def test_hallucinations_are_found_by_words_that_the_recognition_does_not_have(
    engine: WhisperEngine, dialogue: Samples
) -> None:
    options = replace(FAST, hallucination_silence_threshold=0.1)
    timed = engine.transcribe(dialogue, options)
    plain = engine.transcribe(dialogue, replace(options, word_timestamps=False))
    assert text(plain) == text(timed)
    assert not any(segment.words for segment in plain.segments)


@MODES
def test_every_segment_is_emitted_in_its_turn(
    engine: WhisperEngine, dialogue: Samples, options: TranscribeOptions
) -> None:
    emitted: list[Segment] = []
    recognition = engine.transcribe(dialogue, options, emit=emitted.append)
    assert tuple(emitted) == recognition.segments
    assert len(emitted) > 3


@MODES
@pytest.mark.parametrize("tokens", [5, 20])
def test_speech_after_a_text_that_was_cut_off_is_reported_as_missed(
    engine: WhisperEngine, dialogue: Samples, options: TranscribeOptions, tokens: int
) -> None:
    samples = np.concatenate([np.zeros(20 * SAMPLE_RATE, np.float32), dialogue[: 9 * SAMPLE_RATE]])
    assert engine.transcribe(samples, options).missed == ()
    cut_off = engine.transcribe(samples, replace(options, max_new_tokens=tokens))
    assert cut_off.missed
    assert all(start < end <= 29.0 for start, end in cut_off.missed)
    assert sum(end - start for start, end in cut_off.missed) > 5.0
    if options.vad_filter:
        assert cut_off.missed[0][0] > 19.0, "in seconds of the file, not of its speech"


def test_what_a_window_holds_beyond_the_window_of_the_model_is_reported_as_missed(
    engine: WhisperEngine, dialogue: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_window_s", 30)
    missed = engine.transcribe(dialogue, replace(BATCHED, word_timestamps=False)).missed
    assert sum(end - start for start, end in missed) > 5.0


def test_a_chunk_length_beyond_the_window_of_the_model_is_limited_with_a_warning(
    engine: WhisperEngine, dialogue: Samples
) -> None:
    for options in (FAST, BATCHED):
        samples = dialogue[: 15 * SAMPLE_RATE]
        usual = engine.transcribe(samples, options)
        longer = engine.transcribe(samples, replace(options, chunk_length=25))
        assert longer.segments == usual.segments
        assert longer.warnings == ("chunk_length is at most 10 s with this model",)


def test_the_last_segment_of_a_batched_window_may_lack_its_end(engine: WhisperEngine) -> None:
    options = replace(BATCHED, max_new_tokens=100)
    shared: Any = None  # nothing is computed
    model = RequestModel(engine._model, shared, options, lambda: False, batched=True)

    tokenizer = Tokenizer(engine._model.hf_tokenizer, True, task="transcribe", language="en")
    first = tokenizer.timestamp_begin
    window = {"time_offset": 20.0, "segment_size": 1000, "segment_duration": 10.0, "seek": 0}
    tokens = [first, 7, 8, first + 150, first + 150, 9]
    segments, _, _ = model._split_segments_by_timestamps(tokens, tokenizer=tokenizer, **window)
    assert [(s["start"], s["end"], s["tokens"]) for s in segments] == [
        (20.0, 23.0, tokens[:4]), (23.0, 30.0, tokens[4:]),
    ]  # fmt: skip


def test_regions_of_joined_speech_are_regions_of_the_file() -> None:
    assert in_file([(3.0, 4.0), (1.0, 2.0), (2.0, 2.5)], None) == ((1.0, 2.5), (3.0, 4.0))
    speech = [
        {"start": 10 * SAMPLE_RATE, "end": 12 * SAMPLE_RATE},
        {"start": 20 * SAMPLE_RATE, "end": 25 * SAMPLE_RATE},
    ]
    assert in_file([(0.5, 3.0)], speech) == ((10.5, 12.0), (20.0, 21.0))
    assert in_file([(6.0, 7.5)], speech) == ((24.0, 25.0),)
