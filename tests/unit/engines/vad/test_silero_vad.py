"""Silero voice activity detection."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from faster_whisper.vad import get_vad_model

from engines.vad import silero_network, silero_vad
from engines.vad.silero_vad import SileroVad
from speech.audio import SAMPLE_RATE
from speech.errors import ModelNotInstalled
from speech.media.segmentation import WINDOW_SAMPLES
from tests.unit.heldout import Clip, clips, conversation


@pytest.fixture(scope="module")
def vad() -> SileroVad:
    return SileroVad()


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Clip]:
    return clips(demo_audio)


def test_regions_of_speech_hold_every_word(vad: SileroVad, spoken: list[Clip]) -> None:
    for clip in spoken:
        regions = vad.speech(clip.samples)
        for word, start, end in clip.words:
            middle = (start + end) / 2
            assert any(a < middle < b for a, b in regions), f"{word} in {clip.text}"


def test_pauses_of_silence_are_no_speech(vad: SileroVad, spoken: list[Clip]) -> None:
    audio = conversation(spoken[:2], seconds=1, pause_s=2.0)
    regions = vad.speech(audio)
    assert len(regions) >= 2
    assert sum(end - start for start, end in regions) < len(audio) / SAMPLE_RATE - 2.0


@pytest.mark.parametrize("seconds", [0.0, 0.001, 5.0])
def test_silence_of_any_length_is_no_speech(vad: SileroVad, seconds: float) -> None:
    assert vad.speech(np.zeros(round(seconds * SAMPLE_RATE), np.float32)) == []


def test_noise_is_no_speech(vad: SileroVad) -> None:
    noise = np.random.default_rng(1).standard_normal(3 * SAMPLE_RATE).astype(np.float32)
    assert vad.speech(0.05 * noise) == []


def test_there_is_one_probability_for_each_begun_window(vad: SileroVad) -> None:
    for samples, windows in ((0, 0), (1, 1), (512, 1), (513, 2)):
        assert len(vad.probabilities(np.zeros(samples, np.float32))) == windows


def test_the_memory_does_not_grow_with_the_audio(vad: SileroVad) -> None:
    audio = np.zeros(20 * 60 * SAMPLE_RATE, np.float32)
    tracemalloc.start()
    try:
        assert not (vad.probabilities(audio) > 0.5).any()
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < audio.nbytes / 2


def test_pieces_of_a_long_file_have_the_probabilities_of_the_whole(
    vad: SileroVad, spoken: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = conversation(spoken, seconds=20)
    whole = vad.probabilities(audio)
    monkeypatch.setattr(silero_vad, "_PIECE", 10 * WINDOW_SAMPLES)
    np.testing.assert_allclose(vad.probabilities(audio), whole, atol=1e-5)


def test_later_audio_does_not_change_earlier_probabilities(
    vad: SileroVad, spoken: list[Clip]
) -> None:
    audio = conversation(spoken, seconds=20)
    whole = vad.probabilities(audio)
    for windows in (1, 300, 450):
        part = vad.probabilities(audio[: windows * WINDOW_SAMPLES])
        np.testing.assert_allclose(part, whole[:windows], atol=1e-4)


def test_the_probabilities_are_those_of_the_published_network(
    vad: SileroVad, spoken: list[Clip]
) -> None:
    rng = np.random.default_rng(2)
    audio = conversation(spoken, seconds=40)
    audio += 0.01 * rng.standard_normal(len(audio)).astype(np.float32)
    audio = audio[: len(audio) // WINDOW_SAMPLES * WINDOW_SAMPLES]
    # The library writes zeros into the end of what it is given.
    published = get_vad_model()(np.pad(audio, (0, WINDOW_SAMPLES))).reshape(-1)[:-1]
    assert published.max() > 0.9
    assert published.min() < 0.1
    np.testing.assert_allclose(vad.probabilities(audio), published, atol=1e-4)


def test_the_error_of_a_missing_network_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero_network, "find_spec", lambda name: None)
    with pytest.raises(ModelNotInstalled, match="faster-whisper"):
        silero_network.SileroNetwork()


def test_every_call_starts_from_silence(vad: SileroVad, spoken: list[Clip]) -> None:
    first = vad.probabilities(spoken[0].samples)
    vad.probabilities(spoken[1].samples)
    np.testing.assert_array_equal(vad.probabilities(spoken[0].samples), first)
