"""Steps of frame-synchronous recognition: chunks, failures, hotwords of transducers."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.onnx_asr.streaming import Step, StreamingEngine
from speech.audio import SAMPLE_RATE
from speech.errors import (
    EngineFailed,
    InvalidRequest,
    ModelNotInstalled,
    ModelUnavailable,
    OutOfMemory,
)
from tests.unit.engines.onnx_asr.streaming_models import MODEL, Words, alone, entry_of, toy
from tests.unit.heldout import Clip

WAIT_S = 30.0
CHUNK_S = 0.16
NOTHING = np.zeros(0, np.float32)


@given(cuts=st.lists(st.integers(0, 4 * SAMPLE_RATE), max_size=30))
@settings(max_examples=20, deadline=None)
def test_audio_may_be_cut_anywhere(
    engine: StreamingEngine, spoken: list[Clip], expected: list[Words], cuts: list[int]
) -> None:
    stream = engine.open()
    for piece in np.split(spoken[0].samples, sorted(cuts)):
        engine.step([Step(stream, piece)])
    assert engine.step([Step(stream, NOTHING, finish=True)]) == [expected[0]]


def test_audio_is_fed_without_decoding_and_decoded_one_chunk_at_a_time(
    engine: StreamingEngine, spoken: list[Clip], expected: list[Words]
) -> None:
    stream, samples = engine.open(), spoken[0].samples
    assert engine.feed([Step(stream, samples[:160])]) == [()], "less than a chunk"
    assert engine.feed([Step(stream, samples[160:], finish=True)]) == [None]
    chunks, (outcome,) = 1, engine.decode([stream])
    while outcome is None:
        chunks, (outcome,) = chunks + 1, engine.decode([stream])
    assert outcome == expected[0]
    assert chunks == pytest.approx(len(samples) / SAMPLE_RATE / CHUNK_S, abs=4)


def test_a_step_that_fails_does_not_fail_the_others(
    engine: StreamingEngine, spoken: list[Clip], expected: list[Words]
) -> None:
    bad, good = engine.open(), engine.open()
    engine.step([Step(bad, spoken[1].samples), Step(good, spoken[0].samples[:5000])])
    outcomes = engine.step(
        [
            Step(bad, np.zeros((2, 2), np.float32)),
            Step(good, spoken[0].samples[5000:], finish=True),
        ]
    )
    assert isinstance(outcomes[0], EngineFailed)
    assert outcomes[1] == expected[0]
    assert engine.step([Step(bad, spoken[2].samples, finish=True)]) == [expected[2]]


def test_a_failed_batch_loses_its_utterances_and_not_the_next_ones(
    engine: StreamingEngine,
    spoken: list[Clip],
    expected: list[Words],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode, attempts = engine._library.decode_streams, count()

    def fail_once(ready: list[Any]) -> None:
        if next(attempts) == 0:
            raise RuntimeError("out of memory")
        decode(ready)

    streams = [engine.open() for _ in range(3)]
    engine.step([Step(stream, spoken[0].samples[:5000]) for stream in streams])
    with monkeypatch.context() as patched:
        patched.setattr(engine._library, "decode_streams", fail_once)
        outcomes = engine.step(
            [
                Step(streams[0], spoken[0].samples[5000:20_000]),
                Step(streams[1], spoken[0].samples[5000:], finish=True),
                Step(streams[2], spoken[0].samples[5000:5010]),
            ]
        )
    assert next(attempts) == 1  # sherpa-onnx has no states of theirs to go on with
    assert isinstance(outcomes[0], OutOfMemory)
    assert "out of memory" in outcomes[0].message
    assert isinstance(outcomes[1], OutOfMemory)
    assert not isinstance(outcomes[2], Exception)
    assert engine.step(
        [
            Step(streams[0], spoken[1].samples, finish=True),
            Step(streams[1], spoken[2].samples, finish=True),
            Step(streams[2], spoken[0].samples[5010:], finish=True),
        ]
    ) == [expected[1], expected[2], expected[0]]


def test_words_of_a_transducer_have_probabilities(tmp_path: Path, spoken: list[Clip]) -> None:
    probabilities = [word.probability for word in alone(toy(tmp_path), spoken[0].samples)]
    assert len(probabilities) > 3
    assert all(p is not None and 0 < p < 1 for p in probabilities)


def test_a_model_that_does_not_stream_is_refused(repository: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not stream"):
        StreamingEngine(
            entry_of("demo-vosk"), repository / "models" / "demo" / "demo-vosk", device="cpu"
        )


def test_a_model_without_its_files_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(ModelNotInstalled):
        StreamingEngine(entry_of(MODEL), tmp_path, device="cpu")


def test_an_option_that_the_catalogue_misspells_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="max_utterance"):
        toy(tmp_path, max_utterance=9)
