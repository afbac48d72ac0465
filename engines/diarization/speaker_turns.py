"""What the ways of diarization share: lawful numbers of speakers, and turns put in order."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from speech.errors import Cancelled, InvalidRequest
from speech.live.speakers import speaker_label
from speech.ports import DiarizeOptions
from speech.transcript import Diarization, Turn

Cancel = Callable[[], bool]


def check_numbers(options: DiarizeOptions) -> None:
    """Raises InvalidRequest for numbers of speakers that cannot be."""
    for name in ("num_speakers", "min_speakers", "max_speakers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InvalidRequest(f"{name} must be at least 1, not {value}")
    fewest, most = options.min_speakers or 1, options.max_speakers
    if most is not None and fewest > most:
        raise InvalidRequest(f"min_speakers {fewest} is above max_speakers {most}")
    number = options.num_speakers
    if number is not None and not fewest <= number <= (most or number):
        raise InvalidRequest(f"num_speakers {number} is outside of min_speakers to max_speakers")


@contextmanager
def taking_turns(lock: threading.Lock, cancelled: Cancel) -> Iterator[None]:
    """Hold the lock of a pipeline that keeps state while it runs; waiting can be cancelled."""
    while not lock.acquire(timeout=0.1):
        raise_if(cancelled)
    try:
        yield
    finally:
        lock.release()


def raise_if(cancelled: Cancel) -> None:
    """Raises Cancelled when nobody waits for the result any more."""
    if cancelled():
        raise Cancelled("the diarization was given up")


def turns_within(segments: Iterable[tuple[float, float, str]], duration: float) -> list[Turn]:
    """Turns of (start, end, speaker) in the order of time, cut to the length of the audio."""
    turns = [
        Turn(round(max(0.0, start), 3), round(min(end, duration), 3), speaker)
        for start, end, speaker in segments
    ]
    return sorted(
        (turn for turn in turns if turn.start < turn.end), key=lambda turn: (turn.start, turn.end)
    )


def named_by_appearance(turns: Sequence[Turn], exclusive: Sequence[Turn]) -> Diarization:
    """Speakers renamed to SPEAKER_00, SPEAKER_01… in the order in which they first talk."""
    names: dict[str, str] = {}
    for turn in (*turns, *exclusive):
        names.setdefault(turn.speaker, speaker_label(len(names)))
    return Diarization(
        tuple(replace(turn, speaker=names[turn.speaker]) for turn in turns),
        tuple(replace(turn, speaker=names[turn.speaker]) for turn in exclusive),
    )


def one_at_a_time(turns: Iterable[Turn]) -> list[Turn]:
    """The turns cut so that none overlap: the one that began first keeps the floor."""
    exclusive, until = [], 0.0
    for turn in sorted(turns, key=lambda turn: (turn.start, -turn.end)):
        if turn.end > until:
            exclusive.append(replace(turn, start=max(turn.start, until)))
            until = turn.end
    return exclusive
