"""Who speaks in a live stream: labels by likeness, stable from the first utterance on."""

import numpy as np
import pytest

from speech.errors import InvalidRequest
from speech.live.speakers import MAX_SPEAKERS, OnlineSpeakers


def voice(number, spread=0.0, seed=0, dimensions=64):
    """A vector of length 1 near one of some orthogonal voices."""
    vector = np.zeros(dimensions, np.float32)
    vector[number] = 1.0
    vector += spread * np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
    return vector / np.linalg.norm(vector)


def test_a_label_stays_with_its_voice():
    speakers = OnlineSpeakers()
    spoken = [0, 1, 0, 2, 1, 0]
    labels = [speakers.label(voice(n, 0.05, seed), 3.0) for seed, n in enumerate(spoken)]
    assert labels == [f"SPEAKER_{n:02d}" for n in spoken]


def test_labels_count_from_zero_in_the_order_of_appearance():
    speakers = OnlineSpeakers()
    assert [speakers.label(voice(n), 3.0) for n in (7, 3)] == ["SPEAKER_00", "SPEAKER_01"]


def test_a_word_too_short_to_know_a_voice_by_joins_the_nearest():
    speakers = OnlineSpeakers()
    speakers.label(voice(0), 3.0)
    speakers.label(voice(1), 3.0)
    assert speakers.label((voice(2) + 0.1 * voice(1)) / 1.005, 0.4) == "SPEAKER_01"
    assert speakers.label(voice(2), 3.0) == "SPEAKER_02"


def test_even_a_short_first_utterance_has_a_speaker():
    assert OnlineSpeakers().label(voice(0), 0.2) == "SPEAKER_00"


def test_the_number_of_speakers_is_bounded():
    speakers = OnlineSpeakers()
    labels = {speakers.label(voice(n), 3.0) for n in range(MAX_SPEAKERS + 10)}
    assert len(labels) == MAX_SPEAKERS


@pytest.mark.parametrize("seconds", [1.0, 30.0])
def test_one_voice_that_wavers_stays_one_speaker(seconds):
    speakers = OnlineSpeakers()
    assert {speakers.label(voice(0, 0.08, seed), seconds) for seed in range(50)} == {"SPEAKER_00"}


def test_who_takes_over_knows_the_voices_by_their_labels():
    first = OnlineSpeakers()
    voices = {}
    for seed, n in enumerate([0, 1, 0, 2]):
        label = first.label(voice(n, 0.05, seed), 5000.0)
        voices[label] = first.voice(label)
    second = OnlineSpeakers(voices)
    spoken = [2, 3, 1, 0]
    labels = [second.label(voice(n, 0.05, 9 + n), 3.0) for n in spoken]
    assert labels == [f"SPEAKER_{n:02d}" for n in spoken]


def test_voices_of_another_model_keep_their_labels_to_themselves():
    first = OnlineSpeakers()
    label = first.label(voice(0), 3.0)
    second = OnlineSpeakers({label: first.voice(label)})
    assert second.label(voice(0, dimensions=32), 3.0) == "SPEAKER_01"


HALF = np.full(8, 0.5, "<f2").tobytes()


@pytest.mark.parametrize(
    "voices",
    [
        {"SPEAKER_01": HALF},
        {"SPEAKER_00": HALF, "SPEAKER_02": HALF},
        {"Ann": HALF},
        {f"SPEAKER_{n:02d}": HALF for n in range(MAX_SPEAKERS + 1)},
        {"SPEAKER_00": b""},
        {"SPEAKER_00": HALF[1:]},
        {"SPEAKER_00": 1000 * HALF},
        {"SPEAKER_00": HALF, "SPEAKER_01": HALF[2:]},
        {"SPEAKER_00": np.full(8, np.nan, "<f2").tobytes()},
    ],
)
def test_voices_that_were_never_given_are_refused(voices):
    with pytest.raises(InvalidRequest, match="voice"):
        OnlineSpeakers(voices)
