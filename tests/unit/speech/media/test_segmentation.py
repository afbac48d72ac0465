"""Speech regions and utterances from the probabilities of a voice activity detector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from speech.media.segmentation import (
    WINDOW_S,
    Region,
    SpeechOptions,
    speech_regions,
    utterances,
)

BARE = SpeechOptions(min_speech_s=0, min_silence_s=WINDOW_S, pad_s=0)

probability_lists = st.lists(st.floats(0, 1, width=32), max_size=400)
speech_options = st.builds(
    SpeechOptions,
    threshold=st.just(0.5),
    end_threshold=st.floats(0.05, 0.5),
    min_speech_s=st.floats(0, 0.5),
    min_silence_s=st.floats(0, 1),
    pad_s=st.floats(0, 0.5),
)


def windows(*stretches: tuple[int, float]) -> NDArray[np.float32]:
    """So many windows of this probability, then so many of that."""
    return np.concatenate([np.full(count, value, np.float32) for count, value in stretches])


def regions(probabilities: NDArray[np.float32], options: SpeechOptions) -> list[Region]:
    return speech_regions(probabilities, len(probabilities) * WINDOW_S, options)


def in_windows(found: list[Region]) -> list[tuple[int, int]]:
    return [(round(start / WINDOW_S), round(end / WINDOW_S)) for start, end in found]


def test_speech_begins_at_the_threshold_and_lasts_until_the_lower_one() -> None:
    probabilities = windows((10, 0.1), (5, 0.49), (5, 0.5), (10, 0.36), (10, 0.34), (5, 0.49))
    assert in_windows(regions(probabilities, BARE)) == [(15, 30)]


def test_a_silence_shorter_than_the_minimum_does_not_part_speech() -> None:
    probabilities = windows((5, 0.9), (9, 0.0), (5, 0.9), (11, 0.0), (5, 0.9))
    options = SpeechOptions(min_speech_s=0, min_silence_s=10 * WINDOW_S, pad_s=0)
    assert in_windows(regions(probabilities, options)) == [(0, 19), (30, 35)]


def test_speech_shorter_than_the_minimum_is_dropped() -> None:
    probabilities = windows((5, 0.0), (2, 0.9), (20, 0.0), (4, 0.9), (20, 0.0))
    options = SpeechOptions(min_speech_s=3 * WINDOW_S, min_silence_s=WINDOW_S, pad_s=0)
    assert in_windows(regions(probabilities, options)) == [(27, 31)]


def test_padding_stays_inside_the_audio_and_meets_in_the_middle_of_a_gap() -> None:
    probabilities = windows((2, 0.0), (5, 0.9), (4, 0.0), (5, 0.9), (2, 0.0))
    options = SpeechOptions(min_speech_s=0, min_silence_s=WINDOW_S, pad_s=3 * WINDOW_S)
    assert in_windows(regions(probabilities, options)) == [(0, 9), (9, 18)]


def test_a_region_ends_with_the_audio_when_the_last_window_is_a_part_of_one() -> None:
    duration = 9.5 * WINDOW_S
    assert speech_regions(windows((10, 0.9)), duration)[-1][1] == duration


def test_no_audio_has_no_speech() -> None:
    assert speech_regions(np.empty(0, np.float32), 0.0) == []


@given(probability_lists, speech_options)
def test_regions_are_disjoint_and_rising_and_inside_the_audio(
    probabilities: list[float], options: SpeechOptions
) -> None:
    probabilities = np.array(probabilities, np.float32)
    bounds = [edge for region in regions(probabilities, options) for edge in region]
    assert bounds == sorted(bounds)
    assert all(0 <= edge <= len(probabilities) * WINDOW_S for edge in bounds)


@given(probability_lists, st.floats(0, 0.5))
def test_every_window_above_the_threshold_is_inside_a_region(
    probabilities: list[float], pad_s: float
) -> None:
    probabilities = np.array(probabilities, np.float32)
    found = regions(probabilities, SpeechOptions(min_speech_s=0, pad_s=pad_s))
    for window in np.flatnonzero(probabilities >= 0.5):
        middle = (window + 0.5) * WINDOW_S
        assert any(start < middle < end for start, end in found)


def test_a_long_utterance_is_cut_in_its_later_half_where_speech_is_least_probable() -> None:
    probabilities = windows((20, 0.9), (1, 0.1), (50, 0.9), (1, 0.4), (40, 0.9))
    first, second = utterances([(0.0, 112 * WINDOW_S)], probabilities, max_s=100 * WINDOW_S)
    assert first == (0.0, pytest.approx(71.5 * WINDOW_S))
    assert second == (first[1], 112 * WINDOW_S)


def test_regions_share_an_utterance_while_they_fit_and_their_gap_is_short() -> None:
    silence = windows((1000, 0.0))
    given_regions = [(0.0, 2.0), (2.5, 5.0), (5.5, 9.0), (11.0, 12.0)]
    assert utterances(given_regions, silence, max_s=6.0) == [(0.0, 5.0), (5.5, 9.0), (11.0, 12.0)]


@given(probability_lists, speech_options, st.floats(0.3, 8), st.floats(0, 2))
def test_utterances_hold_all_speech_once_and_none_is_longer_than_allowed(
    probabilities: list[float], options: SpeechOptions, max_s: float, join_gap_s: float
) -> None:
    probabilities = np.array(probabilities, np.float32)
    speech = regions(probabilities, options)
    cut = utterances(speech, probabilities, max_s, join_gap_s)

    bounds = [edge for utterance in cut for edge in utterance]
    assert bounds == sorted(bounds)
    assert all(end - start <= max_s + 1e-9 for start, end in cut)
    for start, end in speech:
        covered = sum(max(0.0, min(end, e) - max(start, s)) for s, e in cut)
        assert covered == pytest.approx(end - start, abs=1e-9)
