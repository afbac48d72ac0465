"""Merging of the results of models: speakers of words, emotions of segments.

Pure functions over :mod:`speech.transcript`; none of them touches audio.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby

from speech.ports import EmotionLevel
from speech.transcript import (
    Diarization,
    EmotionSpan,
    Recognition,
    Scores,
    Segment,
    Span,
    Turn,
    Word,
)

NEAREST_TURN_S = 1.0
"""The greatest distance to the nearest turn at which a word outside of all turns belongs to it."""

FLIP_S = 0.25
FLIP_SHARE = 0.8
"""A single word between two words of another speaker is attributed to that speaker if it is shorter
than ``FLIP_S`` and less than ``FLIP_SHARE`` of it is in turns of its own: the borders of turns are
inexact."""

SEEKS_PER_S = 100
"""Whisper counts ``seek`` in frames of 10 ms."""

SENTENCE_ENDS = (".", "?", "!", "…")


def join_channels(recognitions: Sequence[Recognition]) -> tuple[Segment, ...]:
    """Recognitions of channel 0, 1, … as one list in order of time, with ``channel``."""
    return _in_time_order(
        replace(segment, channel=channel)
        for channel, recognition in enumerate(recognitions)
        for segment in recognition.segments
    )


def shifted(segments: Iterable[Segment], seconds: float) -> tuple[Segment, ...]:
    """The segments with times ``seconds`` later."""
    return tuple(
        replace(
            segment,
            start=segment.start + seconds,
            end=segment.end + seconds,
            words=tuple(word.shifted(seconds) for word in segment.words),
            seek=None if segment.seek is None else segment.seek + round(seconds * SEEKS_PER_S),
        )
        for segment in segments
    )


def attribute(segments: Sequence[Segment], diarization: Diarization) -> tuple[Segment, ...]:
    """Give every word its speaker and split the segments where the speaker changes.

    The speaker of a word is the one whose exclusive turns overlap it most; else the one whose turns
    do; else the nearest within NEAREST_TURN_S; else None. On a channel of one speaker (turns with a
    channel) every word is that speaker's. Short flips are smoothed, see FLIP_S.

    A part of a split segment has the times and text of its words, the statistics of the whole
    segment, and no tokens. A segment without words is attributed as if it were one word.
    """
    speakers: dict[int | None, _ChannelSpeakers] = {}
    parts: list[Segment] = []
    for segment in segments:
        if segment.channel not in speakers:
            speakers[segment.channel] = _ChannelSpeakers(diarization, segment.channel)
        parts += _split(segment, speakers[segment.channel])
    return _in_time_order(parts)


def sentences(segments: Iterable[Segment]) -> list[Span]:
    """Spans of the sentences, each up to a word that ends in . ? ! … or to the end of its segment.

    A segment without words is one sentence.
    """
    spans = []
    for segment in segments:
        if not segment.words:
            spans.append(Span(segment.start, segment.end, segment.channel))
        start: float | None = None
        for word in segment.words:
            start = word.start if start is None else start
            if word.text.rstrip().endswith(SENTENCE_ENDS) or word is segment.words[-1]:
                spans.append(Span(start, word.end, segment.channel))
                start = None
    return spans


def emotion_spans(
    level: EmotionLevel,
    segments: Sequence[Segment] | None,
    turns: Sequence[Turn] | None,
    duration: float,
) -> tuple[list[Span], str | None]:
    """The spans to classify, and a warning if they are not of the requested level.

    ``word`` and ``sentence`` need segments, ``speaker`` needs turns; without them (None) the next
    best level is used: words for speakers, else the file. Only spans of turns have a speaker.
    Spans are within [0, ``duration``] seconds; empty ones are dropped.
    """
    warning: str | None = None
    whole = [Span(0.0, duration)]
    match level:
        case "speaker" if turns is not None:
            spans = [Span(turn.start, turn.end, turn.channel, turn.speaker) for turn in turns]
        case "speaker" if segments is not None:
            spans = _words(segments)
            warning = "no speaker turns: emotions are given per word instead of per speaker"
        case "word" if segments is not None:
            spans = _words(segments)
        case "sentence" if segments is not None and (found := sentences(segments)):
            spans = found
        case "file":
            spans = whole
        case _:
            lacking = "speaker turns" if level == "speaker" else f"{level}s"
            spans = whole
            warning = f"no {lacking}: emotions are given for the whole file"
    inside = [
        replace(span, start=max(0.0, span.start), end=min(duration, span.end)) for span in spans
    ]
    return [span for span in inside if span.start < span.end], warning


def with_emotions(
    segments: Sequence[Segment], spans: Sequence[EmotionSpan], level: EmotionLevel
) -> tuple[Segment, ...]:
    """Give every segment the mean scores of the spans that overlap it, weighted by seconds.

    Spans of another channel or another speaker do not count. At the level ``file`` every segment
    has the scores of the file. A segment without classified spans has None.
    """
    if level == "file":
        return tuple(replace(s, emotion=spans[0].scores if spans else None) for s in segments)
    ordered = sorted(spans, key=lambda span: span.start)
    starts = [span.start for span in ordered]
    reach = list(accumulate((span.end for span in ordered), max))
    return tuple(
        replace(
            segment,
            emotion=_mean_scores(
                segment,
                ordered[bisect_right(reach, segment.start) : bisect_left(starts, segment.end)],
            ),
        )
        for segment in segments
    )


def _words(segments: Iterable[Segment]) -> list[Span]:
    return [
        Span(part.start, part.end, segment.channel)
        for segment in segments
        for part in segment.words or (segment,)
    ]


def _mean_scores(segment: Segment, spans: Iterable[EmotionSpan]) -> Scores | None:
    sums: defaultdict[str, float] = defaultdict(float)
    seconds = 0.0
    for span in spans:
        overlap = min(span.end, segment.end) - max(span.start, segment.start)
        if overlap <= 0 or not _matches(span, segment):
            continue
        seconds += overlap
        for label, score in span.scores.items():
            sums[label] += overlap * score
    return {label: total / seconds for label, total in sums.items()} if seconds else None


def _matches(span: EmotionSpan, segment: Segment) -> bool:
    other_channel = None not in (span.channel, segment.channel) and span.channel != segment.channel
    other_speaker = None not in (span.speaker, segment.speaker) and span.speaker != segment.speaker
    return not other_channel and not other_speaker


def _split(segment: Segment, speakers: "_ChannelSpeakers") -> list[Segment]:
    if not segment.words:
        speaker, _ = speakers.speaker_of(segment.start, segment.end)
        return [replace(segment, speaker=speaker)]
    words = _smoothed(
        segment.words, [speakers.speaker_of(word.start, word.end) for word in segment.words]
    )
    runs = [(speaker, tuple(run)) for speaker, run in groupby(words, key=lambda word: word.speaker)]
    if len(runs) == 1:
        return [replace(segment, speaker=runs[0][0], words=runs[0][1])]
    return [
        replace(
            segment,
            start=run[0].start,
            end=max(word.end for word in run),
            text="".join(word.text for word in run),
            words=run,
            speaker=speaker,
            tokens=None,
        )
        for speaker, run in runs
    ]


def _smoothed(words: Sequence[Word], votes: Sequence[tuple[str | None, float]]) -> list[Word]:
    speakers = [speaker for speaker, _ in votes]
    for i in range(1, len(words) - 1):
        before, after = speakers[i - 1], speakers[i + 1]
        short = words[i].end - words[i].start < FLIP_S
        if before == after != speakers[i] and short and votes[i][1] < FLIP_SHARE:
            speakers[i] = before
    return [replace(word, speaker=name) for word, name in zip(words, speakers, strict=True)]


def _in_time_order(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Sorted by start; segments of one channel keep their order."""
    reached: dict[int | None, float] = {}
    keyed = []
    for segment in segments:
        key = max(segment.start, reached.get(segment.channel, segment.start))
        reached[segment.channel] = key
        keyed.append((key, segment))
    return tuple(segment for _, segment in sorted(keyed, key=lambda pair: pair[0]))


class _ChannelSpeakers:
    """The speakers of one channel (None: of the mono mix)."""

    def __init__(self, diarization: Diarization, channel: int | None) -> None:
        turns = _on_channel(diarization.turns, channel)
        self._exclusive = _timelines(_on_channel(diarization.exclusive, channel))
        self._turns = _timelines(turns)
        owners = {turn.speaker for turn in turns if turn.channel is not None}
        self._owner = owners.pop() if channel is not None and len(owners) == 1 else None

    def speaker_of(self, start: float, end: float) -> tuple[str | None, float]:
        """The speaker of a time span, and the share of it in that speaker's turns."""
        if self._owner is not None:
            return self._owner, 1.0
        for timelines in (self._exclusive, self._turns):
            overlaps = {who: line.overlap(start, end) for who, line in timelines.items()}
            speaker = max(overlaps, key=overlaps.__getitem__, default=None)
            if speaker is not None and overlaps[speaker] > 0:
                return speaker, overlaps[speaker] / (end - start)
        gaps = {who: line.distance(start, end) for who, line in self._turns.items()}
        nearest = min(gaps, key=gaps.__getitem__, default=None)
        near = nearest is not None and gaps[nearest] <= NEAREST_TURN_S
        return nearest if near else None, 0.0


def _on_channel(turns: Iterable[Turn], channel: int | None) -> list[Turn]:
    return [turn for turn in turns if channel is None or turn.channel in (None, channel)]


def _timelines(turns: Iterable[Turn]) -> dict[str, "_Timeline"]:
    by_speaker: defaultdict[str, list[Turn]] = defaultdict(list)
    for turn in sorted(turns, key=lambda turn: turn.start):
        by_speaker[turn.speaker].append(turn)
    return {speaker: _Timeline(mine) for speaker, mine in by_speaker.items()}


class _Timeline:
    """The turns of one speaker, joined where they touch; queries by bisection."""

    def __init__(self, turns: Iterable[Turn]) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []
        for turn in turns:
            if self._ends and turn.start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], turn.end)
            else:
                self._starts.append(turn.start)
                self._ends.append(turn.end)

    def overlap(self, start: float, end: float) -> float:
        """Seconds of the time span that are in turns."""
        total = 0.0
        for i in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            total += min(self._ends[i], end) - max(self._starts[i], start)
        return total

    def distance(self, start: float, end: float) -> float:
        """Seconds between the time span and the nearest turn."""
        i = bisect_right(self._ends, start)
        after = self._starts[i] - end if i < len(self._starts) else float("inf")
        before = start - self._ends[i - 1] if i else float("inf")
        return max(0.0, min(before, after))
