"""Utterances of a live stream on the sample clock: endpoints, pauses, and what never happens."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.audio import SAMPLE_RATE
from speech.errors import InvalidRequest
from speech.live.endpointing import (
    PAUSE_WINDOWS,
    Endpointer,
    EndpointOptions,
    PauseCutter,
    SpeechEnd,
    SpeechStart,
    Utterance,
    cut_after,
)
from speech.media.segmentation import WINDOW_SAMPLES

LONGEST_S = 15.0
SPEECH, SILENCE = 0.9, 0.05


def windows(seconds):
    return round(seconds * SAMPLE_RATE / WINDOW_SAMPLES)


def sound(*parts):
    """Probabilities of (value, seconds) one after the other."""
    return [value for value, seconds in parts for _ in range(windows(seconds))]


def seconds(position):
    return position / SAMPLE_RATE


def utterances(marks):
    return [mark for mark in marks if isinstance(mark, Utterance)]


def finished(segmenter, probabilities, extra=0):
    """All marks of a stream; ``extra`` samples follow the last whole window."""
    marks = segmenter.feed(probabilities)
    return marks + segmenter.finish(len(probabilities) * WINDOW_SAMPLES + extra)


probabilities = st.lists(
    st.tuples(st.sampled_from([0.02, 0.3, 0.4, 0.6, 0.97]), st.integers(1, 300)), max_size=12
).map(lambda runs: [value for value, count in runs for _ in range(count)])


def test_an_utterance_has_its_pre_roll_and_its_tail():
    marks = finished(Endpointer(EndpointOptions()), sound((SILENCE, 1), (SPEECH, 2), (SILENCE, 2)))
    start, end, utterance = marks
    assert (type(start), type(end), type(utterance)) == (SpeechStart, SpeechEnd, Utterance)
    assert seconds(start.at) == pytest.approx(1, abs=0.05)
    assert seconds(end.at) == pytest.approx(3, abs=0.05)
    assert seconds(utterance.begin) == pytest.approx(0.7, abs=0.05)
    assert seconds(utterance.end) == pytest.approx(3.25, abs=0.05)


@pytest.mark.parametrize(
    ("pause_s", "count"), [(0.3, 1), (0.55, 1), (0.7, 2), (3.0, 2)], ids=lambda value: str(value)
)
def test_a_pause_of_the_given_length_ends_an_utterance(pause_s, count):
    windows = sound((SPEECH, 2), (SILENCE, pause_s), (SPEECH, 2), (SILENCE, 1))
    assert len(utterances(finished(Endpointer(EndpointOptions(silence_s=0.6)), windows))) == count


def test_a_click_is_no_speech():
    windows = sound((SILENCE, 1), (SPEECH, 0.06), (SILENCE, 1))
    assert finished(Endpointer(EndpointOptions(min_speech_s=0.1)), windows) == []


def test_a_short_answer_waits_for_the_least_length():
    options = EndpointOptions(silence_s=0.5, min_utterance_s=2.0)
    windows = sound((SPEECH, 0.4), (SILENCE, 1.0), (SPEECH, 0.4), (SILENCE, 2.0))
    (utterance,) = utterances(finished(Endpointer(options), windows))
    assert seconds(utterance.end) == pytest.approx(1.8 + options.tail_s, abs=0.1)


def test_finish_ends_what_is_going_on_and_the_stream_goes_on():
    endpointer = Endpointer(EndpointOptions())
    endpointer.feed(sound((SPEECH, 1)))
    (first,) = utterances(endpointer.finish(SAMPLE_RATE))
    assert (first.begin, first.end) == (0, SAMPLE_RATE)
    assert endpointer.finish(SAMPLE_RATE + 5) == []
    second = utterances(endpointer.feed(sound((SPEECH, 1), (SILENCE, 1))))
    assert len(second) == 1
    assert second[0].begin >= first.end


def test_a_long_utterance_is_cut_in_its_last_pause():
    windows = sound((SPEECH, 6), (SILENCE, 0.3), (SPEECH, 5), (SILENCE, 0.3), (SPEECH, 9))
    first, second = utterances(finished(Endpointer(EndpointOptions()), windows))
    assert seconds(first.end) == pytest.approx(11.45, abs=0.2)
    assert first.cut
    assert second.begin == first.end


def test_a_cut_in_the_pause_that_goes_on_leaves_a_silent_utterance_of_some_length():
    windows = sound((SPEECH, 14.4), (SILENCE, 1))
    first, second = utterances(finished(Endpointer(EndpointOptions()), windows))
    assert first.cut
    assert first.end == second.begin < second.end <= second.detected_at


def test_speech_without_a_pause_is_cut_where_speech_is_least_likely():
    windows = sound((SPEECH, 11), (0.6, 0.04), (SPEECH, 9))
    first, *_ = utterances(finished(Endpointer(EndpointOptions()), windows))
    assert seconds(first.end) == pytest.approx(11, abs=0.1)


@given(windows=probabilities, extra=st.integers(0, WINDOW_SAMPLES - 1))
def test_endpoints_rise_stay_inside_and_are_never_too_long(windows, extra):
    endpointer = Endpointer(EndpointOptions(max_utterance_s=LONGEST_S))
    marks = finished(endpointer, windows, extra)
    found = utterances(marks)
    for utterance in found:
        assert 0 < utterance.end - utterance.begin <= LONGEST_S * SAMPLE_RATE
    for before, after in itertools.pairwise(found):
        assert after.begin >= before.end
        assert not before.cut or after.begin == before.end
    if found:
        assert found[-1].end <= len(windows) * WINDOW_SAMPLES + extra
    assert sum(isinstance(mark, SpeechStart) for mark in marks) == sum(
        isinstance(mark, SpeechEnd) for mark in marks
    )


@given(windows=probabilities, size=st.integers(1, 700))
def test_the_size_of_the_pieces_changes_nothing(windows, size):
    def marks_of(segmenter, step):
        fed = [segmenter.feed(windows[i : i + step]) for i in range(0, len(windows), step)]
        return [*itertools.chain(*fed), *segmenter.finish(len(windows) * WINDOW_SAMPLES)]

    whole = len(windows) or 1
    for make in (lambda: Endpointer(EndpointOptions()), lambda: PauseCutter(LONGEST_S)):
        assert marks_of(make(), size) == marks_of(make(), whole)


@given(windows=probabilities)
def test_no_mark_reaches_back_before_what_may_be_forgotten(windows):
    for segmenter in (Endpointer(EndpointOptions(pre_roll_s=1.0)), PauseCutter(LONGEST_S)):
        kept = 0
        for probability in windows:
            for mark in segmenter.feed([probability]):
                if not isinstance(mark, SpeechEnd):
                    assert mark.begin >= kept
            assert segmenter.keep_from >= kept
            kept = segmenter.keep_from


@given(windows=probabilities, extra=st.integers(0, WINDOW_SAMPLES - 1))
def test_the_pause_cut_loses_and_doubles_no_sample(windows, extra):
    total = len(windows) * WINDOW_SAMPLES + extra
    pieces = utterances(finished(PauseCutter(LONGEST_S), windows, extra))
    assert [piece.begin for piece in pieces] == [0, *(piece.end for piece in pieces)][:-1]
    assert (pieces[-1].end if pieces else 0) == total
    assert all(0 < p.end - p.begin <= LONGEST_S * SAMPLE_RATE for p in pieces)


@given(windows=probabilities)
def test_the_pause_cut_lies_in_a_pause_between_speech_when_there_is_one(windows):
    cutter = PauseCutter(LONGEST_S, threshold=0.5)
    begin = 0
    for index, probability in enumerate(windows):
        for mark in cutter.feed([probability]):
            pending = [p >= 0.5 for p in windows[begin : index + 1]]
            spoken_from = pending.index(True) if any(pending) else 0
            pauses = [
                i
                for i in range(spoken_from, len(pending) - PAUSE_WINDOWS + 1)
                if not any(pending[i : i + PAUSE_WINDOWS])
            ]
            at = mark.end // WINDOW_SAMPLES
            if pauses:
                around = windows[max(at - 1, 0) : at + 1]
                assert any(p < 0.5 for p in around)
            assert mark.spoken == any(pending[: at - begin])
            begin = at


def test_the_pause_cut_waits_until_the_buffer_is_full():
    cutter = PauseCutter(LONGEST_S)
    windows = sound((SPEECH, 4), (SILENCE, 1), (SPEECH, 9.5))
    assert cutter.feed(windows) == []
    (piece,) = cutter.feed(sound((SPEECH, 1)))
    assert seconds(piece.end) == pytest.approx(4.5, abs=0.1)


def test_silence_makes_pieces_in_which_nobody_speaks():
    pieces = finished(PauseCutter(LONGEST_S), sound((SILENCE, 40)))
    assert len(pieces) == 3
    assert not any(piece.spoken for piece in pieces)


def test_silence_before_unbroken_speech_is_cut_off():
    cutter = PauseCutter(LONGEST_S)
    (piece,) = cutter.feed(sound((SILENCE, 5), (SPEECH, 10)))
    assert not piece.spoken
    assert seconds(piece.end) == pytest.approx(5, abs=0.1)


@given(windows=st.lists(st.floats(0, 1), min_size=2, max_size=60))
def test_a_cut_is_always_somewhere_inside(windows):
    assert 1 <= cut_after(windows, 0.5) <= len(windows)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.0},
        {"threshold": 0.3, "end_threshold": 0.4},
        {"silence_s": 0.01},
        {"max_utterance_s": 1000.0},
        {"pre_roll_s": -1.0},
        {"min_utterance_s": float("nan")},
        {"webrtc_mode": 4},
    ],
    ids=str,
)
def test_options_outside_their_bounds_are_refused(wrong):
    with pytest.raises(InvalidRequest, match="endpointing"):
        EndpointOptions(**wrong)


def test_an_utterance_of_exactly_the_least_length_may_end():
    # In binary floating point 4.03 * 16000 is more than 64480.
    options = EndpointOptions(min_utterance_s=4.03, pre_roll_s=0.03, silence_s=0.2)
    (utterance,) = utterances(Endpointer(options).feed([0.0] * 10 + [0.9] * 100 + [0.0] * 60))
    assert utterance.detected_at - utterance.begin == 64_480
