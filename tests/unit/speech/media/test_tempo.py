"""Faster and slower speech: the length, the place of every sound, the pitch."""

from typing import Any

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import AudioTooLong, DeadlineExceeded
from speech.media.decoding import decode
from speech.media.tempo import FASTEST, SLOWEST, change_tempo
from tests.unit.sound_files import encode

PLACES_S = (1.0, 5.3, 17.77, 28.0)
BOUNDS: Any = {"keep_channels": False, "max_seconds": 60.0, "max_channels": 1}
SPEEDUPS = [SLOWEST, 0.5, 0.8, 1.25, 1.5, 2.0, 3.0, FASTEST]


@pytest.fixture(scope="module")
def beeps() -> Samples:
    """Half a minute of silence with four tones of 440 Hz, each 0.5 s long."""
    samples = np.zeros(30 * SAMPLE_RATE, np.float32)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE)
    for place in PLACES_S:
        samples[round(place * SAMPLE_RATE) :][: len(tone)] = tone
    return samples


def beep_spans(samples: Samples) -> list[tuple[float, float]]:
    """When the tones sound, by windows of 5 ms."""
    windows = np.abs(samples[: len(samples) // 80 * 80]).reshape(-1, 80).max(axis=1) > 0.1
    edges = np.flatnonzero(np.diff(windows.astype(int), prepend=0, append=0)) * 0.005
    spans: list[list[float]] = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if spans and start - spans[-1][1] < 0.05:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    return [(start, end) for start, end in spans]


@pytest.mark.parametrize("speedup", SPEEDUPS)
def test_every_sound_moves_in_proportion_to_the_speed(beeps: Samples, speedup: float) -> None:
    changed = change_tempo(beeps, speedup)
    assert changed.dtype == np.float32
    assert len(changed) == round(len(beeps) / speedup)
    spans = beep_spans(changed)
    assert len(spans) == len(PLACES_S)
    for (start, end), place in zip(spans, PLACES_S, strict=True):
        assert start * speedup == pytest.approx(place, abs=0.15)
        assert end * speedup == pytest.approx(place + 0.5, abs=0.15)


@pytest.mark.parametrize("speedup", SPEEDUPS)
def test_the_pitch_stays(beeps: Samples, speedup: float) -> None:
    changed = change_tempo(beeps, speedup)
    start = round((PLACES_S[1] + 0.1) / speedup * SAMPLE_RATE)
    part = changed[start : start + round(0.3 / speedup * SAMPLE_RATE)]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), SAMPLE_RATE))
    assert np.argmax(spectrum) == pytest.approx(440, abs=10)


@pytest.mark.parametrize("samples", [0, 1, 100])
@pytest.mark.parametrize("speedup", [SLOWEST, 1.25, FASTEST])
def test_audio_may_be_shorter_than_a_window_of_the_filter(samples: int, speedup: float) -> None:
    assert len(change_tempo(np.zeros(samples, np.float32), speedup)) == round(samples / speedup)


def test_a_file_is_sped_up_with_all_its_channels(beeps: Samples) -> None:
    stereo = np.stack([beeps, np.roll(beeps, SAMPLE_RATE)])
    data = encode("wav", "pcm_s16le", stereo, SAMPLE_RATE, layout="stereo")
    audio = decode(data, keep_channels=True, max_seconds=60, max_channels=2, speedup=1.25)
    assert audio.duration == pytest.approx(24, abs=0.001)
    assert audio.channels is not None
    assert audio.channels.shape == (2, len(audio.mono))


def test_audio_that_is_slowed_down_must_fit_the_bound_too(beeps: Samples) -> None:
    data = encode("wav", "pcm_s16le", beeps, SAMPLE_RATE)
    assert decode(data, **BOUNDS, speedup=0.5).duration == pytest.approx(60, abs=0.001)
    with pytest.raises(AudioTooLong, match="slowed down"):
        decode(data, **BOUNDS, speedup=0.49)


def test_the_deadline_of_decoding_covers_the_change_of_tempo(beeps: Samples) -> None:
    data = encode("wav", "pcm_s16le", beeps, SAMPLE_RATE)
    polls = 0

    def expired() -> bool:
        nonlocal polls
        polls += 1
        return polls > limit

    limit = 10**9
    decode(data, **BOUNDS, deadline=expired)
    limit, polls = polls + 5, 0  # a few seconds into the filter
    with pytest.raises(DeadlineExceeded):
        decode(data, **BOUNDS, speedup=1.25, deadline=expired)
