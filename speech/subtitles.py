"""Subtitles: segments as SubRip (SRT) and WebVTT, in readable cues.

A cue has at most two lines of 42 characters and seven seconds, the common limits of broadcasters'
style guides. It ends with its segment, at the end of a sentence, where the speaker or the channel
changes, and before a pause. A word is never split; one too long for a line has a line of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from speech.merge import SENTENCE_ENDS
from speech.transcript import Segment, Word

LINE_CHARACTERS = 42
CUE_LINES = 2
CUE_MS = 7_000
PAUSE_MS = 700
SHORTEST_CUE_MS = 100
"""Cues never overlap; at overlapping speech each is shown at least this long."""


@dataclass(frozen=True, slots=True)
class _Cue:
    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    speaker: str | None


def srt(segments: Sequence[Segment], *, speakers: bool = False) -> str:
    """SubRip text; with ``speakers`` each cue begins with "SPEAKER_00: ". "" without words."""
    blocks = []
    for number, cue in enumerate(_cues(segments, name_in_text=speakers), 1):
        text = "\n".join(cue.lines).replace("-->", "->")
        times = f"{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}"
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def vtt(segments: Sequence[Segment], *, speakers: bool = False) -> str:
    """WebVTT text; with ``speakers`` each cue is in the voice tag of its speaker."""
    blocks = []
    for cue in _cues(segments, name_in_text=False):
        voice = f"<v {_escaped(cue.speaker)}>" if speakers and cue.speaker else ""
        times = f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}"
        blocks.append(f"{times}\n{voice}{_escaped(chr(10).join(cue.lines))}\n")
    return "WEBVTT\n\n" + "\n".join(blocks)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(milliseconds: int, point: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"


def _cues(segments: Sequence[Segment], *, name_in_text: bool) -> list[_Cue]:
    """Cues in order of time, none empty and none overlapping."""
    cues: list[_Cue] = []
    for segment in segments:
        start_ms = 0
        for words in _groups(_timed_words(segment), name_in_text):
            # The cues of a segment keep their order, whatever the times of its words.
            start_ms = max(start_ms, _ms(words[0].start))
            end_ms = min(max(_ms(word.end) for word in words), start_ms + CUE_MS)
            lines = tuple(_lines(words, name_in_text))
            cues.append(_Cue(start_ms, end_ms, lines, words[0].speaker))
    cues.sort(key=lambda cue: cue.start_ms)
    return list(_without_overlap(cues))


def _without_overlap(cues: Sequence[_Cue]) -> Iterator[_Cue]:
    free_ms = 0
    for i, cue in enumerate(cues):
        start_ms = max(cue.start_ms, free_ms)
        next_ms = cues[i + 1].start_ms if i + 1 < len(cues) else cue.end_ms
        end_ms = max(min(cue.end_ms, next_ms), start_ms + SHORTEST_CUE_MS)
        free_ms = end_ms
        yield _Cue(start_ms, end_ms, cue.lines, cue.speaker)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _timed_words(segment: Segment) -> list[Word]:
    """The words of a segment; without any, those of its text, spread evenly over it."""
    if segment.words:
        return [
            Word(word.text, word.start, word.end, speaker=word.speaker or segment.speaker)
            for word in segment.words
            if word.text.strip()
        ]
    text = segment.text.split()
    pace = (segment.end - segment.start) / max(1, sum(map(len, text)))
    words, at = [], segment.start
    for token in text:
        words.append(Word(f" {token}", at, at + pace * len(token), speaker=segment.speaker))
        at = words[-1].end
    return words


def _groups(words: Sequence[Word], name_in_text: bool) -> Iterator[list[Word]]:
    """The words of each cue."""
    group: list[Word] = []
    for word in words:
        if group and _breaks(group, word, name_in_text):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _breaks(group: list[Word], word: Word, name_in_text: bool) -> bool:
    last = group[-1]
    return (
        word.speaker != last.speaker
        or last.text.rstrip().endswith(SENTENCE_ENDS)
        or _ms(word.start) - _ms(last.end) > PAUSE_MS
        or _ms(word.end) - _ms(group[0].start) > CUE_MS
        or len(_lines([*group, word], name_in_text)) > CUE_LINES
    )


def _lines(words: Sequence[Word], name_in_text: bool) -> list[str]:
    """The words in lines, each filled before the next."""
    speaker = words[0].speaker
    lines = [f"{speaker}:"] if name_in_text and speaker else [""]
    for word in words:
        text = " ".join(word.text.split())
        space = " " if lines[-1] and (word.text[:1].isspace() or word is words[0]) else ""
        if lines[-1] and len(lines[-1] + space + text) > LINE_CHARACTERS:
            lines.append(text)
        else:
            lines[-1] += space + text
    return lines
