"""Fixtures of streaming recognition: the demo model, and what it recognises of whole clips."""

from pathlib import Path

import numpy as np
import pytest

from engines.onnx_asr.hypothesis import Hypothesis, words_of
from engines.onnx_asr.model_options import OnnxAsrOptions
from engines.onnx_asr.sherpa_models import load
from engines.onnx_asr.streaming import StreamingEngine
from speech.audio import SAMPLE_RATE
from tests.unit.engines.onnx_asr.streaming_models import MODEL, Words, entry_of
from tests.unit.heldout import Clip, clips


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "models" / "demo" / MODEL


@pytest.fixture(scope="module")
def engine(folder: Path) -> StreamingEngine:
    return StreamingEngine(entry_of(MODEL), folder, device="cpu")


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Clip]:
    return clips(demo_audio)


@pytest.fixture(scope="module")
def expected(folder: Path, spoken: list[Clip]) -> list[Words]:
    """The words of each clip, decoded in one piece and alone by sherpa-onnx itself."""
    library = load(
        entry_of(MODEL), OnnxAsrOptions(), folder, device="cpu", compute_type="auto", threads=1
    ).library
    found = []
    for clip in spoken:
        stream = library.create_stream()
        stream.accept_waveform(SAMPLE_RATE, clip.samples)
        stream.accept_waveform(SAMPLE_RATE, np.zeros(round(0.66 * SAMPLE_RATE), np.float32))
        stream.input_finished()
        while library.is_ready(stream):
            library.decode_stream(stream)
        result = library.get_result_all(stream)
        hypothesis = Hypothesis(result.tokens, result.timestamps, result.ys_probs)
        found.append(words_of(hypothesis, (0.0, len(clip.samples) / SAMPLE_RATE)))
    assert all(found)
    return found
