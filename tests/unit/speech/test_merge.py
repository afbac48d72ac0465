"""Speakers of words, spans to classify, and emotions of segments."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.merge import (
    attribute,
    emotion_spans,
    join_channels,
    sentences,
    shifted,
    with_emotions,
)
from speech.transcript import Diarization, EmotionSpan, Recognition, Segment, Span, Turn, Word


def words(text: str, start: float = 0.0, pace: float = 0.5) -> tuple[Word, ...]:
    """One word every ``pace`` seconds."""
    return tuple(
        Word(f" {token}", start + i * pace, start + (i + 1) * pace)
        for i, token in enumerate(text.split())
    )


def segment(
    text: str, start: float = 0.0, pace: float = 0.5, channel: int | None = None
) -> Segment:
    spoken = words(text, start, pace)
    return Segment(start, spoken[-1].end, f" {text}", spoken, channel=channel, avg_logprob=-0.5)


def diarization(*turns: tuple[float, float, str], channel: int | None = None) -> Diarization:
    made = tuple(Turn(start, end, speaker, channel) for start, end, speaker in turns)
    return Diarization(turns=made, exclusive=made)


def words_by_speaker(segments: tuple[Segment, ...]) -> list[tuple[str | None, str]]:
    return [(s.speaker, s.text.strip()) for s in segments]


# Speakers of words


def test_a_segment_of_one_speaker_stays_whole() -> None:
    whole = segment("good morning everybody")
    (got,) = attribute([whole], diarization((0, 5, "A")))
    assert replace(got, speaker=None, words=whole.words) == whole
    assert got.speaker == "A"
    assert {word.speaker for word in got.words} == {"A"}


def test_a_segment_is_split_where_the_speaker_changes() -> None:
    got = attribute(
        [segment("how are you fine thanks")], diarization((0, 1.5, "A"), (1.5, 2.5, "B"))
    )
    assert words_by_speaker(got) == [("A", "how are you"), ("B", "fine thanks")]
    assert [(s.start, s.end) for s in got] == [(0.0, 1.5), (1.5, 2.5)]
    assert {s.avg_logprob for s in got} == {-0.5}


def test_a_word_belongs_to_the_speaker_who_overlaps_it_most() -> None:
    got = attribute([segment("one two")], diarization((0, 0.7, "A"), (0.7, 1.0, "B")))
    assert words_by_speaker(got) == [("A", "one"), ("B", "two")]


def test_exclusive_turns_go_before_overlapping_ones() -> None:
    voices = Diarization(
        turns=(Turn(0, 2, "A"), Turn(0.5, 1.5, "B")),
        exclusive=(Turn(0, 0.5, "A"), Turn(0.5, 1.5, "B"), Turn(1.5, 2, "A")),
    )
    assert words_by_speaker(attribute([segment("a b c d")], voices)) == [
        ("A", "a"),
        ("B", "b c"),
        ("A", "d"),
    ]


def test_without_an_exclusive_turn_an_overlapping_one_decides() -> None:
    voices = Diarization(turns=(Turn(0, 0.5, "B"), Turn(5, 6, "A")), exclusive=(Turn(5, 6, "A"),))
    assert words_by_speaker(attribute([segment("hm")], voices)) == [("B", "hm")]


@pytest.mark.parametrize(("gap_s", "speaker"), [(0.9, "A"), (1.1, None)])
def test_a_word_outside_every_turn_goes_to_the_nearest_within_a_second(
    gap_s: float, speaker: str | None
) -> None:
    late = segment("late", start=2.0 + gap_s)
    assert attribute([late], diarization((0, 2, "A")))[0].speaker == speaker
    early = segment("early", start=5.0)
    turn_after = diarization((early.end + gap_s, 9, "A"))
    assert attribute([early], turn_after)[0].speaker == speaker


def test_a_word_without_length_takes_the_turn_it_lies_in() -> None:
    point = Segment(1.0, 1.0, " oh", (Word(" oh", 1.0, 1.0),))
    got = attribute([point], diarization((0, 0.9, "A"), (0.95, 2, "B")))
    assert got[0].speaker == "B"


def test_a_short_flip_on_weak_evidence_stays_with_the_run() -> None:
    spoken = (Word(" I", 0.0, 0.5), Word(" a", 0.5, 0.7), Word(" m", 0.7, 1.2))
    flip = diarization((0, 0.55, "A"), (0.55, 0.68, "B"), (0.68, 2, "A"))
    assert words_by_speaker(attribute([Segment(0, 1.2, " I a m", spoken)], flip)) == [
        ("A", "I a m")
    ]


@pytest.mark.parametrize("end", [0.7, 0.8])
def test_a_flip_that_is_long_or_well_supported_is_believed(end: float) -> None:
    spoken = (Word(" I", 0.0, 0.5), Word(" yes", 0.5, end), Word(" m", end, 1.2))
    flip = diarization((0, 0.5, "A"), (0.5, 0.7, "B"), (0.7, 2, "A"))
    got = attribute([Segment(0, 1.2, " I yes m", spoken)], flip)
    assert words_by_speaker(got) == [("A", "I"), ("B", "yes"), ("A", "m")]


def test_a_segment_without_words_is_attributed_as_a_whole() -> None:
    got = attribute([Segment(0, 2, " hello")], diarization((0, 0.5, "A"), (0.5, 2, "B")))
    assert words_by_speaker(got) == [("B", "hello")]


def test_the_words_of_a_channel_belong_to_the_speaker_of_that_channel() -> None:
    turns = (Turn(0, 1, "L0", 0), Turn(3, 4, "R0", 1))
    segments = [segment("left side", 0.0, channel=0), segment("right side", 8.0, channel=1)]
    got = attribute(segments, Diarization(turns, turns))
    assert words_by_speaker(got) == [("L0", "left side"), ("R0", "right side")]


def test_without_turns_nobody_is_named() -> None:
    assert words_by_speaker(attribute([segment("who is it")], Diarization((), ()))) == [
        (None, "who is it")
    ]


SPEAKERS = st.sampled_from("ABC")
TIMES = st.floats(0, 60, allow_nan=False, width=32)


@st.composite
def recognised(draw: st.DrawFn) -> list[Segment]:
    """Segments in order; words may overlap, have no length, or lie apart."""
    at, made, number = 0.0, [], 0
    for _ in range(draw(st.integers(0, 6))):
        spoken = []
        for _ in range(draw(st.integers(0, 8))):
            length = draw(st.floats(0, 1.5))
            spoken.append(Word(f" w{number}", at, at + length, 0.5))
            at += draw(st.floats(0, 2))
            number += 1
        end = max([at, *(word.end for word in spoken)])
        start = spoken[0].start if spoken else at
        text = "".join(word.text for word in spoken) or " text"
        channel = draw(st.sampled_from([None, 0, 1]))
        made.append(Segment(start, end, text, tuple(spoken), channel=channel))
    return made


@st.composite
def diarized(draw: st.DrawFn) -> Diarization:
    turns = st.builds(
        lambda start, length, speaker, channel: Turn(start, start + length, speaker, channel),
        TIMES,
        st.floats(0, 10),
        SPEAKERS,
        st.sampled_from([None, 0, 1]),
    )
    return Diarization(tuple(draw(st.lists(turns))), tuple(draw(st.lists(turns))))


@given(recognised(), diarized())
def test_no_word_is_lost_doubled_changed_or_reordered(
    segments: list[Segment], voices: Diarization
) -> None:
    got = attribute(segments, voices)
    for channel in (None, 0, 1):
        before = [w for s in segments if s.channel == channel for w in s.words]
        after = [w for s in got if s.channel == channel for w in s.words]
        assert [replace(word, speaker=None) for word in after] == before
        text = "".join(s.text for s in segments if s.channel == channel)
        assert "".join(s.text for s in got if s.channel == channel) == text


@given(recognised(), diarized())
def test_every_word_of_a_segment_has_the_speaker_of_the_segment(
    segments: list[Segment], voices: Diarization
) -> None:
    for part in attribute(segments, voices):
        assert {word.speaker for word in part.words} <= {part.speaker}
        assert part.start <= part.end


@given(recognised(), diarized())
def test_segments_come_in_the_order_of_time(segments: list[Segment], voices: Diarization) -> None:
    starts = [part.start for part in attribute(segments, voices)]
    assert starts == sorted(starts)


@given(recognised())
def test_one_speaker_never_splits_anything(segments: list[Segment]) -> None:
    got = attribute(segments, diarization((0, 1e6, "A")))
    assert [replace(s, speaker=None, words=()) for s in got] == [
        replace(s, words=()) for s in sorted(segments, key=lambda s: s.start)
    ]
    assert {s.speaker for s in got} <= {"A"}


def test_two_hours_are_attributed_in_one_go() -> None:
    turns = [(i * 2.0, i * 2.0 + 2.0, "AB"[i % 2]) for i in range(3600)]
    got = attribute([segment("word " * 14400)], diarization(*turns))
    assert len(got) == 3600
    assert sum(len(s.words) for s in got) == 14400


# Channels


def test_channels_are_joined_in_the_order_of_time() -> None:
    left = Recognition((segment("hello", 0.0), segment("fine thanks", 4.0)))
    right = Recognition((segment("how are you", 2.0),))
    got = join_channels([left, right])
    assert [(s.channel, s.text) for s in got] == [
        (0, " hello"),
        (1, " how are you"),
        (0, " fine thanks"),
    ]


def test_joining_no_channels_gives_nothing() -> None:
    assert join_channels([]) == ()


# Sentences


def test_a_sentence_ends_with_its_mark_or_with_its_segment() -> None:
    got = sentences([segment("Really? Yes… I do. And", 0.0), segment("then we left!", 2.5)])
    assert got == [Span(0.0, 0.5), Span(0.5, 1.0), Span(1.0, 2.0), Span(2.0, 2.5), Span(2.5, 4.0)]


def test_a_segment_without_words_is_one_sentence() -> None:
    assert sentences([Segment(1.0, 3.0, " One. Two.", channel=1)]) == [Span(1.0, 3.0, 1)]


# What is classified


SPOKEN = (segment("Stop it. Now", 1.0, channel=1),)
TURNS = (Turn(0.0, 1.5, "A"), Turn(1.0, 9.0, "B", 1))


def test_words_are_classified_on_their_channel() -> None:
    spans, warning = emotion_spans("word", SPOKEN, TURNS, 10.0)
    assert spans == [Span(1.0, 1.5, 1), Span(1.5, 2.0, 1), Span(2.0, 2.5, 1)]
    assert warning is None


def test_sentences_are_classified_on_their_channel() -> None:
    spans, warning = emotion_spans("sentence", SPOKEN, TURNS, 10.0)
    assert spans == [Span(1.0, 2.0, 1), Span(2.0, 2.5, 1)]
    assert warning is None


def test_turns_are_classified_with_their_speaker_within_the_file() -> None:
    spans, warning = emotion_spans("speaker", SPOKEN, TURNS, 8.0)
    assert spans == [Span(0.0, 1.5, None, "A"), Span(1.0, 8.0, 1, "B")]
    assert warning is None


def test_the_file_is_one_span() -> None:
    assert emotion_spans("file", SPOKEN, TURNS, 8.0) == ([Span(0.0, 8.0)], None)


def test_without_turns_speakers_fall_back_to_words() -> None:
    spans, warning = emotion_spans("speaker", SPOKEN, None, 10.0)
    assert len(spans) == 3
    assert warning is not None
    assert "per word" in warning


@pytest.mark.parametrize("level", ["word", "sentence", "speaker"])
def test_without_any_data_the_file_is_classified(level: str) -> None:
    spans, warning = emotion_spans(level, None, None, 8.0)  # type: ignore[arg-type]
    assert spans == [Span(0.0, 8.0)]
    assert warning is not None
    assert "whole file" in warning


def test_a_transcript_without_a_sentence_falls_back_to_the_file() -> None:
    spans, warning = emotion_spans("sentence", (), None, 8.0)
    assert spans == [Span(0.0, 8.0)]
    assert warning is not None


@pytest.mark.parametrize("level", ["word", "speaker"])
def test_where_nobody_speaks_nothing_is_classified(level: str) -> None:
    assert emotion_spans(level, (), (), 8.0) == ([], None)  # type: ignore[arg-type]


@given(
    st.sampled_from(["word", "sentence", "speaker", "file"]),
    st.none() | recognised(),
    st.none() | st.builds(lambda d: d.turns, diarized()),
    st.floats(0, 30),
)
def test_spans_lie_in_the_file_and_have_length(
    level: str, segments: list[Segment] | None, turns: tuple[Turn, ...] | None, duration: float
) -> None:
    spans, _ = emotion_spans(level, segments, turns, duration)  # type: ignore[arg-type]
    assert all(0 <= span.start < span.end <= duration for span in spans)


# How segments sound


CALM, ANGRY = {"angry": 0.0, "neutral": 1.0}, {"angry": 1.0, "neutral": 0.0}


def test_a_segment_sounds_like_its_spans_weighted_by_seconds() -> None:
    spans = [EmotionSpan(0.0, 1.0, CALM), EmotionSpan(1.0, 4.0, ANGRY), EmotionSpan(9, 10, CALM)]
    (got,) = with_emotions([Segment(0.0, 4.0, " text")], spans, "word")
    assert got.emotion == pytest.approx({"angry": 0.75, "neutral": 0.25})


def test_a_segment_in_which_nothing_was_classified_has_no_emotion() -> None:
    (got,) = with_emotions([Segment(5.0, 6.0, " text")], [EmotionSpan(0, 1, CALM)], "word")
    assert got.emotion is None


def test_the_scores_of_the_file_are_those_of_every_segment() -> None:
    got = with_emotions(
        [Segment(0, 1, "a"), Segment(50, 50, "b")], [EmotionSpan(0, 9, ANGRY)], "file"
    )
    assert [s.emotion for s in got] == [ANGRY, ANGRY]


def test_neither_another_speaker_nor_another_channel_colours_a_segment() -> None:
    mine = Segment(0.0, 4.0, " text", speaker="A", channel=0)
    spans = [
        EmotionSpan(0, 4, CALM, "A", 0),
        EmotionSpan(0, 4, ANGRY, "B", 0),
        EmotionSpan(0, 4, ANGRY, None, 1),
    ]
    (got,) = with_emotions([mine], spans, "speaker")
    assert got.emotion == CALM


@given(recognised(), st.lists(st.tuples(TIMES, st.floats(0, 5), st.floats(0, 1))))
def test_the_mean_of_distributions_is_a_distribution(
    segments: list[Segment], scored: list[tuple[float, float, float]]
) -> None:
    spans = [EmotionSpan(at, at + length, {"x": p, "y": 1 - p}) for at, length, p in scored]
    for got, before in zip(with_emotions(segments, spans, "word"), segments, strict=True):
        overlaps = any(min(s.end, got.end) - max(s.start, got.start) > 0 for s in spans)
        assert (got.emotion is not None) == overlaps
        assert replace(got, emotion=None) == before
        if got.emotion:
            assert sum(got.emotion.values()) == pytest.approx(1.0)


def test_a_part_of_the_file_is_moved_to_its_place_with_its_words() -> None:
    part = Segment(0.5, 1.0, " Yes.", (Word(" Yes.", 0.5, 1.0, 0.9),), seek=50)
    (moved,) = shifted([part], 30.0)
    assert moved == Segment(30.5, 31.0, " Yes.", (Word(" Yes.", 30.5, 31.0, 0.9),), seek=3050)
    assert shifted([Segment(0.0, 1.0, " No.")], 1.0) == (Segment(1.0, 2.0, " No."),)
