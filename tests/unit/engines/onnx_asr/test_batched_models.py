"""Models on onnx-asr: transducers, attention decoders, their options, files and devices.

demo-nemo, a CTC model, is tested with the other demo models. The models here are made by hand.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_asr.adapters import TimestampedResultsAsrAdapter

from configs.catalogue import ModelEntry
from engines.onnx_asr.offline import OnnxAsrEngine
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    EngineFailed,
    InvalidRequest,
    ModelNotInstalled,
    ModelUnavailable,
    OutOfMemory,
)
from speech.ports import TranscribeOptions
from tests.unit.engines.onnx_asr import toy_nemo, toy_transducer
from tests.unit.heldout import Clip, clips, conversation

PLAIN = TranscribeOptions()


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Clip]:
    return clips(demo_audio)


@pytest.fixture(scope="module")
def half_a_minute(spoken: list[Clip]) -> Samples:
    return conversation(spoken, seconds=30)


def entry(format_: str, **fields: Any) -> ModelEntry:
    described = {
        "id": "toy",
        "family": "onnx_asr",
        "format": format_,
        "source": {"path": "toy"},
        "languages": ("ru", "en"),
        "licence": "Apache-2.0",
        "memory_mb": 1,
    }
    return ModelEntry.model_validate(described | fields)


@pytest.fixture(scope="module")
def tdt(tmp_path_factory: pytest.TempPathFactory) -> OnnxAsrEngine:
    folder = toy_nemo.write_tdt(tmp_path_factory.mktemp("tdt"))
    return OnnxAsrEngine(entry("nemo-conformer-tdt"), folder, device="cpu")


@pytest.fixture(scope="module")
def kaldi(tmp_path_factory: pytest.TempPathFactory) -> OnnxAsrEngine:
    folder = tmp_path_factory.mktemp("kaldi")
    toy_transducer.write(folder / "am-onnx")
    (folder / "lang").mkdir()
    (folder / "am-onnx/tokens.txt").rename(folder / "lang/tokens.txt")
    return OnnxAsrEngine(entry("kaldi-rnnt"), folder, device="cpu")


@pytest.fixture(scope="module")
def aed(tmp_path_factory: pytest.TempPathFactory) -> OnnxAsrEngine:
    folder = toy_nemo.write_aed(tmp_path_factory.mktemp("aed"))
    return OnnxAsrEngine(entry("nemo-conformer-aed", translation=True), folder, device="cpu")


@pytest.mark.parametrize(("model", "step_s"), [("tdt", toy_nemo.STEP_S), ("kaldi", 0.04)])
def test_words_of_a_transducer_have_the_times_of_its_steps_and_probabilities(
    model: str, step_s: float, half_a_minute: Samples, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(model)
    recognition = engine.transcribe(half_a_minute, PLAIN)
    assert len(recognition.segments) > 1
    for segment in recognition.segments:
        words = [word.text for word in segment.words]
        assert words[:2] == [" да", " нет"]
        assert set(words) == {" да", " нет"}
        assert segment.text == "".join(words)
        starts = [word.start for word in segment.words]
        steps = np.diff(starts) / step_s
        assert starts == sorted(starts)
        assert np.allclose(steps, np.round(steps), atol=1e-6)
        assert all(0.4 < word.probability <= 1 for word in segment.words)


@pytest.mark.parametrize("model", ["tdt", "kaldi", "aed"])
def test_the_size_of_a_batch_does_not_change_what_is_recognised(
    model: str, half_a_minute: Samples, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(model)
    asked = replace(PLAIN, language="ru")
    alone, together = (
        engine.transcribe(half_a_minute, replace(asked, batch_size=size)).segments
        for size in (1, 16)
    )
    assert [s.text.split()[0] for s in alone] == [s.text.split()[0] for s in together]


def test_an_attention_decoder_writes_the_language_that_the_request_names(
    aed: OnnxAsrEngine, half_a_minute: Samples
) -> None:
    for language, word in {"ru": " привет", "en": " hello"}.items():
        recognition = aed.transcribe(half_a_minute, replace(PLAIN, language=language))
        assert recognition.language == language
        assert {segment.text for segment in recognition.segments} == {word}


def test_an_attention_decoder_translates_to_english(
    aed: OnnxAsrEngine, half_a_minute: Samples
) -> None:
    asked = replace(PLAIN, language="ru", task="translate")
    assert {s.text for s in aed.transcribe(half_a_minute, asked).segments} == {" hello"}


def test_a_segment_without_times_of_words_has_those_of_its_utterance_and_a_warning(
    aed: OnnxAsrEngine, half_a_minute: Samples
) -> None:
    recognition = aed.transcribe(half_a_minute, replace(PLAIN, language="en"))
    assert recognition.warnings == ("model 'toy' gives no times of words",)
    edges = [edge for s in recognition.segments for edge in (s.start, s.end)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= len(half_a_minute) / SAMPLE_RATE
    assert {segment.words for segment in recognition.segments} == {()}
    bare = replace(PLAIN, language="en", word_timestamps=False)
    assert aed.transcribe(half_a_minute, bare).warnings == ()


def test_a_model_that_does_not_detect_the_language_asks_for_it(aed: OnnxAsrEngine) -> None:
    with pytest.raises(InvalidRequest, match="name it in 'language', one of ru, en"):
        aed.transcribe(np.zeros(100, np.float32), PLAIN)


def test_options_without_effect_are_named(tdt: OnnxAsrEngine) -> None:
    asked = replace(PLAIN, language="ru", beam_size=2, hotwords="Anna")
    assert tdt.transcribe(np.zeros(100, np.float32), asked).warnings == (
        "model 'toy' does not honour beam_size, hotwords",
        "model 'toy' detects the language by itself and ignores the hint",
    )
    with pytest.raises(InvalidRequest, match="does not translate"):
        tdt.transcribe(np.zeros(100, np.float32), replace(PLAIN, task="translate"))


def test_silence_is_warmed_up_with_and_gives_no_segments(
    tdt: OnnxAsrEngine, aed: OnnxAsrEngine
) -> None:
    for engine in (tdt, aed):
        engine.warm_up()
        assert engine.compute_type == "float32"
        silence = np.zeros(5 * SAMPLE_RATE, np.float32)
        assert engine.transcribe(silence, replace(PLAIN, language="ru")).segments == ()


def quantised(folder: Path, *, only: bool) -> None:
    for part in ("encoder-model", "decoder_joint-model"):
        move = Path.rename if only else shutil.copyfile
        move(folder / f"{part}.onnx", folder / f"{part}.int8.onnx")


@pytest.mark.parametrize(
    ("only", "asked", "used"),
    [
        (False, "auto", "float32"),
        (False, "int8", "int8"),
        (True, "auto", "int8"),
        (True, "int8", "int8"),
    ],
)
def test_the_quantised_files_are_used_where_they_are_asked_for_or_alone(
    tmp_path: Path, only: bool, asked: str, used: str
) -> None:
    quantised(toy_nemo.write_tdt(tmp_path), only=only)
    engine = OnnxAsrEngine(entry("nemo-conformer-tdt"), tmp_path, device="cpu", compute_type=asked)
    assert engine.compute_type == used


def failing_above(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """The sizes of the batches that onnx-asr is given; those above ``most`` run out of memory."""
    sizes: list[int] = []
    recognise = TimestampedResultsAsrAdapter.recognize

    def bounded(self: Any, batch: list[Samples], **options: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > most:
            raise RuntimeError("[ONNXRuntimeError] Failed to allocate memory for requested buffer")
        return recognise(self, batch, **options)

    monkeypatch.setattr(TimestampedResultsAsrAdapter, "recognize", bounded)
    return sizes


def test_a_batch_that_does_not_fit_the_memory_is_decoded_in_smaller_ones(
    tdt: OnnxAsrEngine, half_a_minute: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tdt.transcribe(half_a_minute, replace(PLAIN, batch_size=1))
    count = len(expected.segments)
    sizes = failing_above(monkeypatch, most=1)
    assert tdt.transcribe(half_a_minute, PLAIN).segments == expected.segments
    assert sizes[0] == count > 1
    assert sizes[-count:] == [1] * count


def test_an_utterance_that_does_not_fit_the_memory_is_an_out_of_memory(
    tdt: OnnxAsrEngine, half_a_minute: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_above(monkeypatch, most=0)
    with pytest.raises(OutOfMemory):
        tdt.transcribe(half_a_minute, PLAIN)


def missing(folder: Path) -> None:
    (folder / "vocab.txt").unlink()


def broken(folder: Path) -> None:
    (folder / "encoder-model.onnx").write_bytes(b"no network")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (missing, ModelNotInstalled, "a file of the model is missing"),
        (broken, ModelUnavailable, "'toy' does not load"),
    ],
)
def test_a_model_that_is_missing_or_broken_is_an_error_that_names_it(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    damage(toy_nemo.write_tdt(tmp_path))
    with pytest.raises(error, match=message) as raised:
        OnnxAsrEngine(entry("nemo-conformer-tdt"), tmp_path, device="cpu")
    assert type(raised.value) is error


def test_options_of_the_other_backend_are_refused(tmp_path: Path) -> None:
    toy_nemo.write_tdt(tmp_path)
    steered = entry("nemo-conformer-tdt", options={"decoding_method": "modified_beam_search"})
    with pytest.raises(ModelUnavailable, match="decoding_method: only for formats of sherpa-onnx"):
        OnnxAsrEngine(steered, tmp_path, device="cpu")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_that_onnxruntime_cannot_use_is_an_error_and_not_the_cpu(tmp_path: Path) -> None:
    toy_nemo.write_tdt(tmp_path)
    with pytest.raises(ModelUnavailable, match="does not load on the GPU"):
        OnnxAsrEngine(entry("nemo-conformer-tdt"), tmp_path, device="cuda")


def test_values_that_are_not_finite_are_an_error_and_lose_no_text_in_silence(
    tmp_path: Path, spoken: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_nemo, "_BY_LOUDNESS", np.full((1, 3), np.nan, np.float32))
    engine = OnnxAsrEngine(entry("nemo-conformer-tdt"), toy_nemo.write_tdt(tmp_path), device="cpu")
    with pytest.raises(EngineFailed, match="not finite"):
        engine.transcribe(spoken[0].samples, PLAIN)
