"""No text is lost to values outside of a number format, at load and in requests."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import numpy as np
import pytest

from engines.whisper.engine import WhisperEngine
from speech.audio import Samples
from speech.errors import EngineFailed, ModelUnavailable
from speech.ports import TranscribeOptions
from speech.transcript import Recognition
from tests.unit.heldout import load

FAST = TranscribeOptions(beam_size=1, temperature=(0.0,), word_timestamps=False)
BATCHED = replace(FAST, vad_filter=True, batch_size=2)
REAL = ctranslate2.models.Whisper
AMPERE = {"float32", "float16", "bfloat16", "int8_float32", "int8_float16", "int8_bfloat16"}
TURING = AMPERE - {"bfloat16", "int8_bfloat16"}


@cache
def real(path: str) -> Any:
    return REAL(path, device="cpu", compute_type="float32", intra_threads=1)


class Card:
    """A GPU on which some compute types give non-finite values at some place of the model.

    The computation is the CPU's in float32, so that every compute type gives the same text.
    """

    def __init__(self) -> None:
        self.supported = AMPERE
        self.narrow = {"float16", "int8_float16"}
        self.place: str | None = None
        """Of the non-finite values; None: all are finite."""
        self.loaded: list[str] = []
        self.lost = 0
        """Windows that a narrow type gave no finite values for."""

    def types(self, device: str, index: int = 0) -> set[str]:
        return self.supported


class OnCard:
    """``ctranslate2.models.Whisper`` on a card."""

    card: Card

    def __init__(self, path: str, device: str, compute_type: str, **_: Any) -> None:
        self.card.loaded.append(compute_type)
        self.compute_type, self.device, self.device_index = compute_type, device, [0]
        self._real = real(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _loses(self, place: str) -> bool:
        return self.compute_type in self.card.narrow and self.card.place == place

    def encode(self, features: Any, to_cpu: bool = False) -> Any:
        output = self._real.encode(features)
        if not self._loses("encoder"):
            return output
        values = np.array(output)
        values[-1, 7, 3] = np.inf
        values[-1, 8, 3] = np.nan
        self.card.lost += 1
        return ctranslate2.StorageView.from_array(values)

    def generate(self, output: Any, prompts: Any, **options: Any) -> Any:
        results = self._real.generate(output, prompts, **options)
        if self._loses("decoder"):
            # What a GPU returns where all log-probabilities of a step are NaN.
            lost = SimpleNamespace(sequences_ids=[[0] * 9], scores=[-65504 / 9], no_speech_prob=0.0)
            results[-1] = lost
            self.card.lost += 1
        return results

    def detect_language(self, output: Any) -> Any:
        results = self._real.detect_language(output)
        if self._loses("language"):
            results[-1] = [(name, float("nan")) for name, _ in reversed(results[-1])]
            self.card.lost += 1
        return results

    def align(self, output: Any, start: Any, tokens: Any, frames: Any, **options: Any) -> Any:
        results = self._real.align(output, start, tokens, frames, **options)
        if self._loses("alignment"):
            path = results[-1].alignments
            results[-1] = SimpleNamespace(
                alignments=path, text_token_probs=[float("nan")] * len(tokens[-1])
            )
            self.card.lost += 1
        elif self._loses("frames"):
            # What is left of a path over NaN: every token in the first frame, and the end after it.
            last = len(tokens[-1])
            path = [(token, 0) for token in range(last + 1)]
            path += [(last, frame) for frame in range(1, 100)]
            results[-1] = SimpleNamespace(
                alignments=path, text_token_probs=results[-1].text_token_probs
            )
            self.card.lost += 1
        return results


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(OnCard, "card", card, raising=False)
    monkeypatch.setattr(ctranslate2.models, "Whisper", OnCard)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", card.types)
    return card


@pytest.fixture(scope="module")
def dialogue(demo_audio: Path) -> Samples:
    return load(demo_audio / "dialogue-en.flac")[: 14 * 16_000]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The messages of the warnings so far, read when the test compares them."""
    with caplog.at_level(logging.WARNING):
        yield Messages(caplog)


class Messages(list[str]):
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __iter__(self) -> Iterator[str]:
        return (record.getMessage() for record in self._caplog.records)


class Reruns:
    def __init__(self) -> None:
        self.windows = 0

    def __call__(self, windows: int) -> None:
        self.windows += windows


def engine(
    repository: Path, compute_type: str, reruns: Reruns | None = None, device: str = "cpu"
) -> WhisperEngine:
    """On a card that calls itself a CPU by default, where the first windows are short."""
    path = repository / "models" / "demo" / "demo-whisper"
    return WhisperEngine(
        path, device=device, compute_type=compute_type, threads=1, on_rerun=reruns or Reruns()
    )


def spoken(recognition: Recognition) -> list[Any]:
    return [(s.text, s.start, s.end, s.words) for s in recognition.segments]


@pytest.mark.parametrize(
    ("supported", "chosen"),
    [(AMPERE, "bfloat16"), (TURING, "float16"), ({"float32", "int8_float32"}, "float32")],
)
def test_auto_takes_the_fast_type_of_the_widest_range_on_a_gpu(
    card: Card, repository: Path, supported: set[str], chosen: str
) -> None:
    card.supported = supported
    found = engine(repository, "auto", device="cuda")
    found.warm_up()
    assert found.compute_type == chosen
    assert card.loaded == [chosen]


@pytest.mark.parametrize("place", ["encoder", "language", "decoder", "alignment"])
def test_a_type_that_is_not_finite_in_the_first_windows_is_replaced_with_one_warning(
    card: Card, repository: Path, dialogue: Samples, warnings: list[str], place: str
) -> None:
    card.place = place
    reruns = Reruns()
    found = engine(repository, "float16", reruns)
    found.warm_up()
    assert found.compute_type == "bfloat16"
    (warning,) = warnings
    assert "in bfloat16 instead of float16" in warning
    assert "not finite" in warning
    assert found.transcribe(dialogue, FAST).segments
    assert card.loaded == ["float16", "bfloat16"]
    assert reruns.windows == 0


@pytest.mark.parametrize(
    ("asked", "supported", "narrow", "taken"),
    [
        ("int8_float16", AMPERE, {"int8_float16"}, "int8_bfloat16"),
        ("int8_float16", TURING, {"int8_float16"}, "int8_float32"),
        ("float16", TURING, {"float16"}, "float32"),
        ("float16", AMPERE, {"float16", "bfloat16"}, "float32"),
    ],
)
def test_the_replacement_is_the_next_type_of_wider_range_that_the_card_has(
    card: Card, repository: Path, asked: str, supported: set[str], narrow: set[str], taken: str
) -> None:
    card.supported, card.narrow, card.place = supported, narrow, "encoder"
    found = engine(repository, asked)
    found.warm_up()
    assert found.compute_type == taken


def test_a_model_that_is_finite_in_no_type_is_unavailable(card: Card, repository: Path) -> None:
    card.narrow, card.place = AMPERE, "encoder"
    with pytest.raises(ModelUnavailable, match="no finite values") as failure:
        engine(repository, "float16").warm_up()
    assert "float32" in str(failure.value.detail)


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("encoder", replace(FAST, beam_size=5, word_timestamps=True)),
        ("encoder", replace(BATCHED, multilingual=True, without_timestamps=True)),
        ("encoder", replace(FAST, task="translate", language="en", temperature=(0.0, 0.4))),
        ("decoder", FAST),
        ("decoder", replace(BATCHED, word_timestamps=True)),
        ("decoder", replace(FAST, task="translate", vad_filter=True, batch_size=1)),
        ("language", FAST),
        ("language", replace(BATCHED, multilingual=True)),
        ("alignment", replace(FAST, word_timestamps=True)),
        ("alignment", replace(BATCHED, word_timestamps=True)),
        ("frames", replace(FAST, word_timestamps=True)),
        ("frames", replace(BATCHED, word_timestamps=True)),
    ],
)
def test_windows_that_are_not_finite_run_again_and_are_counted(
    card: Card,
    repository: Path,
    dialogue: Samples,
    warnings: list[str],
    place: str,
    options: TranscribeOptions,
) -> None:
    reruns = Reruns()
    found = engine(repository, "float16", reruns)
    found.warm_up()
    expected = found.transcribe(dialogue, options)
    assert len(expected.segments) > 1
    assert not list(warnings)
    card.place = place
    again = found.transcribe(dialogue, options)
    assert spoken(again) == spoken(expected)
    assert (again.language, again.missed) == (expected.language, expected.missed)
    assert reruns.windows == card.lost > 0
    assert card.loaded == ["float16", "bfloat16"]
    (warning,) = warnings
    assert "again in bfloat16 whose values are not finite in float16" in warning


def test_a_window_that_is_finite_in_no_type_is_an_error(
    card: Card, repository: Path, dialogue: Samples
) -> None:
    found = engine(repository, "float16")
    found.warm_up()
    card.narrow, card.place = AMPERE, "encoder"
    with pytest.raises(EngineFailed, match="no finite values in float32"):
        found.transcribe(dialogue, FAST)


def test_calls_and_threads_share_the_model_of_the_wider_type(
    card: Card, repository: Path, dialogue: Samples, warnings: list[str]
) -> None:
    found = engine(repository, "float16")
    found.warm_up()
    expected = spoken(found.transcribe(dialogue, FAST))
    card.place = "decoder"
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda _: spoken(found.transcribe(dialogue, FAST)), range(3))
        assert all(result == expected for result in results)
    assert card.loaded == ["float16", "bfloat16"]
    assert len(list(warnings)) == 1


@pytest.mark.parametrize("options", [FAST, BATCHED], ids=["sequential", "batched"])
def test_words_without_times_do_not_cost_the_text(
    card: Card, repository: Path, dialogue: Samples, options: TranscribeOptions
) -> None:
    found = engine(repository, "float32")
    expected = [s.text for s in found.transcribe(dialogue, options).segments]
    card.narrow, card.place = {"float32"}, "frames"
    timed = found.transcribe(dialogue, replace(options, word_timestamps=True))
    assert [s.text for s in timed.segments] == expected
    assert ["".join(w.text for w in s.words) for s in timed.segments] == expected
