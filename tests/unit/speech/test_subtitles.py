"""Subtitles that players accept and people can read."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.subtitles import CUE_LINES, CUE_MS, LINE_CHARACTERS, srt, vtt
from speech.transcript import Segment, Word

TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)[,.](\d{3})"


def segment(
    text: str, start: float = 0.0, pace: float = 0.4, speaker: str | None = None
) -> Segment:
    words = tuple(
        Word(f" {token}", start + i * pace, start + (i + 1) * pace)
        for i, token in enumerate(text.split())
    )
    return Segment(start, words[-1].end, f" {text}", words, speaker)


def cues(subtitles: str) -> list[tuple[int, int, str]]:
    """Start and end in milliseconds, and the text, of SRT or VTT."""
    found = []
    for block in subtitles.removeprefix("WEBVTT\n\n").split("\n\n"):
        match = re.search(rf"{TIME} --> {TIME}\n(.*)", block, re.DOTALL)
        if match is None:
            continue
        numbers = [int(n) for n in match.groups()[:8]]
        start, end = (
            ((h * 60 + m) * 60 + s) * 1000 + ms for h, m, s, ms in (numbers[:4], numbers[4:])
        )
        found.append((start, end, match.group(9).removesuffix("\n")))
    return found


def texts(subtitles: str) -> list[str]:
    return [text for _, _, text in cues(subtitles)]


def test_srt_as_players_expect_it() -> None:
    segments = [segment("Hello there.", 0.0), segment("How are you?", 61.5, speaker="B")]
    assert srt(segments) == (
        "1\n00:00:00,000 --> 00:00:00,800\nHello there.\n\n"
        "2\n00:01:01,500 --> 00:01:02,700\nHow are you?\n"
    )


def test_vtt_as_browsers_expect_it() -> None:
    segments = [segment("Hello there.", 3600.0), segment("Fine.", 3661.5)]
    assert vtt(segments) == (
        "WEBVTT\n\n"
        "01:00:00.000 --> 01:00:00.800\nHello there.\n\n"
        "01:01:01.500 --> 01:01:01.900\nFine.\n"
    )


def test_silence_is_an_empty_file() -> None:
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n\n"
    assert srt([Segment(0.0, 1.0, "  ")]) == ""


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [
        (59.9996, "00:01:00,000"),
        (3599.9999, "01:00:00,000"),
        (0.0004, "00:00:00,000"),
        (360000.0, "100:00:00,000"),
        (-0.2, "00:00:00,000"),
    ],
)
def test_rounding_carries_into_minutes_and_hours(seconds: float, clock: str) -> None:
    segments = Segment(seconds, seconds + 1, " a", (Word(" a", seconds, seconds + 1),))
    assert srt([segments]).splitlines()[1].startswith(clock)


def test_a_cue_ends_with_its_sentence() -> None:
    assert texts(srt([segment("One two. Three four? Five")])) == ["One two.", "Three four?", "Five"]


def test_a_cue_ends_before_a_pause() -> None:
    words = (Word(" so", 0.0, 0.5), Word(" well", 1.3, 1.6), Word(" yes", 1.7, 2.0))
    assert texts(srt([Segment(0, 2, " so well yes", words)])) == ["so", "well yes"]


def test_a_cue_ends_where_the_speaker_changes() -> None:
    words = (Word(" so", 0.0, 0.5, speaker="A"), Word(" well", 0.5, 1.0, speaker="B"))
    assert texts(srt([Segment(0, 1, " so well", words)])) == ["so", "well"]


def test_a_cue_has_two_lines_of_42_characters() -> None:
    text = "word " * 40
    for _, _, shown in cues(srt([segment(text.strip(), pace=0.1)])):
        lines = shown.split("\n")
        assert len(lines) <= 2
        assert all(len(line) <= 42 for line in lines)


def test_a_cue_stays_no_longer_than_seven_seconds() -> None:
    spans = [end - start for start, end, _ in cues(srt([segment("uh " * 30, pace=0.9)]))]
    assert len(spans) == 5
    assert max(spans) <= 7000


def test_a_word_too_long_for_a_line_stays_whole() -> None:
    long = "x" * 60
    assert texts(srt([segment(f"so {long} there")])) == [f"so\n{long}", "there"]


def test_words_without_a_space_before_them_stay_joined() -> None:
    words = (Word("今日", 0.0, 0.5), Word("は", 0.5, 0.7), Word(" ok", 0.7, 1.0))
    assert texts(srt([Segment(0, 1, "今日は ok", words)])) == ["今日は ok"]


def test_a_segment_without_words_is_spread_over_its_time() -> None:
    got = cues(srt([Segment(10.0, 24.0, " " + "abcd " * 28)]))
    assert " ".join(text for _, _, text in got).split() == ["abcd"] * 28
    assert got[0][0] == 10_000
    assert got[-1][1] == 24_000
    assert len(got) > 1


def test_people_who_talk_at_once_take_turns_on_the_screen() -> None:
    left, right = segment("one two three four five", 0.0), segment("yes", 0.4)
    got = cues(srt([left, right]))
    assert [text for _, _, text in got] == ["one two three four five", "yes"]
    assert got[0][1] == got[1][0] == 400


def test_speakers_are_named_when_asked_for() -> None:
    segments = [segment("Hello.", speaker="SPEAKER_00"), segment("Hm.", 5.0)]
    assert texts(srt(segments, speakers=True)) == ["SPEAKER_00: Hello.", "Hm."]
    assert texts(vtt(segments, speakers=True)) == ["<v SPEAKER_00>Hello.", "Hm."]
    assert texts(srt(segments)) == texts(vtt(segments)) == ["Hello.", "Hm."]


def test_the_name_counts_in_the_line_of_srt() -> None:
    segments = segment("word " * 20, pace=0.1, speaker="SPEAKER_00")
    for text in texts(srt([segments], speakers=True)):
        assert text.startswith("SPEAKER_00: word")
        assert all(len(line) <= LINE_CHARACTERS for line in text.split("\n"))


def test_markup_in_speech_is_shown_not_obeyed() -> None:
    segments = segment("a <b> & --> c", speaker="A>B")
    assert texts(vtt([segments], speakers=True)) == ["<v A&gt;B>a &lt;b&gt; &amp; --&gt; c"]
    assert texts(srt([segments])) == ["a <b> & -> c"]


def test_line_breaks_in_a_word_do_not_break_the_file() -> None:
    segments = Segment(0, 1, "x", (Word(" one\n\n2\n00:00 ", 0.0, 1.0),))
    assert texts(srt([segments])) == ["one 2 00:00"]


@st.composite
def transcripts(draw: st.DrawFn) -> list[Segment]:
    made, at = [], 0.0
    for _ in range(draw(st.integers(0, 5))):
        words = []
        for _ in range(draw(st.integers(0, 25))):
            text = draw(st.text("ab<&>.?", min_size=1, max_size=60) | st.sampled_from(["I", "am"]))
            words.append(Word(f" {text}", at, at + draw(st.floats(0, 9)), speaker=draw(SPEAKERS)))
            at += draw(st.floats(0, 3))
        end = max([at, *(word.end for word in words)])
        start = words[0].start if words else at
        made.append(Segment(start, end, "".join(word.text for word in words), tuple(words)))
    return made


SPEAKERS = st.sampled_from([None, "S1", "S2"])


@given(transcripts(), st.sampled_from([srt, vtt]))
def test_every_word_is_shown_once_and_in_order(segments: list[Segment], render: type) -> None:
    shown = " ".join(texts(render(segments)))
    spoken = " ".join(word.text for s in segments for word in s.words)
    shown = html.unescape(shown) if render is vtt else shown
    assert shown.split() == spoken.replace("-->", "->").split()


@given(transcripts(), st.booleans())
def test_cues_follow_each_other_and_are_short_enough(
    segments: list[Segment], speakers: bool
) -> None:
    end_before = 0
    for start, end, _ in cues(srt(segments, speakers=speakers)):
        assert end_before <= start < end <= start + CUE_MS
        end_before = end


@given(transcripts())
def test_lines_are_bounded_but_for_a_single_long_word(segments: list[Segment]) -> None:
    for text in texts(srt(segments)):
        lines = text.split("\n")
        assert len(lines) <= CUE_LINES
        assert all(len(line) <= LINE_CHARACTERS or " " not in line for line in lines)
