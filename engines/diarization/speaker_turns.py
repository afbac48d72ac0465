"""Speaker turns of a backend, cut to the audio, labelled, and without overlap."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from speech.live.speakers import speaker_label
from speech.transcript import Diarization, Turn


def turns_within(segments: Iterable[tuple[float, float, str]], duration: float) -> list[Turn]:
    """Turns of (start, end, speaker) in seconds, sorted by start and cut to ``duration``."""
    turns = [
        Turn(round(max(0.0, start), 3), round(min(end, duration), 3), speaker)
        for start, end, speaker in segments
    ]
    return sorted(
        (turn for turn in turns if turn.start < turn.end), key=lambda turn: (turn.start, turn.end)
    )


def label_by_appearance(turns: Sequence[Turn], exclusive: Sequence[Turn]) -> Diarization:
    """Speakers renamed to SPEAKER_00, SPEAKER_01… in the order of their first turns."""
    labels: dict[str, str] = {}
    for turn in (*turns, *exclusive):
        labels.setdefault(turn.speaker, speaker_label(len(labels)))
    return Diarization(
        tuple(replace(turn, speaker=labels[turn.speaker]) for turn in turns),
        tuple(replace(turn, speaker=labels[turn.speaker]) for turn in exclusive),
    )


def exclusive_turns(turns: Iterable[Turn]) -> list[Turn]:
    """The turns without overlap: overlapping speech belongs to the turn that began first."""
    exclusive, until = [], 0.0
    for turn in sorted(turns, key=lambda turn: (turn.start, -turn.end)):
        if turn.end > until:
            exclusive.append(replace(turn, start=max(turn.start, until)))
            until = turn.end
    return exclusive
