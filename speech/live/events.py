"""The events of a live stream, and the log that sockets follow."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from speech.errors import Overloaded
from speech.transcript import Scores, Word

Kind = Literal[
    "speech_start",
    "speech_end",
    "partial",
    "final",
    "failed",
    "turn",
    "cleared",
    "finalized",
    "progress",
    "error",
    "done",
]

RETAINED_EVENTS = 1000
"""Events kept for a socket that reads late or resumes."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the stream; times in seconds of the stream, in whole milliseconds.

    ``seq`` rises from event to event and has gaps where a partial was overtaken. ``utterance``
    counts from 0; every utterance has exactly one final, whose ``text`` may be empty. ``lag_s`` is
    the time since the last sample that the event is about was received. ``start`` of a
    speech_start and ``end`` of a speech_end are those of the utterance, the other two are where
    speech begins and ends. ``voice`` recognises the ``speaker`` where a stream is resumed. After
    ``finalized`` all before its ``end`` is final. The events of turns are described at
    :mod:`speech.live.turns`.
    """

    kind: Kind
    seq: int
    start: float
    end: float
    utterance: int = 0
    turn: int = 0
    text: str = ""
    words: tuple[Word, ...] = ()
    lag_s: float = 0.0
    emotion: Scores | None = None
    speaker: str | None = None
    voice: bytes = b""
    code: str = ""


class EventLog:
    """The events of a session for all who follow it, also those who resume.

    Kept are the last :data:`RETAINED_EVENTS` that must not be lost, and the newest partial and
    progress.
    """

    def __init__(self, first_seq: int) -> None:
        self.next_seq = first_seq
        self._kept: deque[Event] = deque()
        self._newest: dict[Kind, Event] = {}
        self._lost = 0
        self._wakers: set[asyncio.Event] = set()
        self.closed = False

    def number(self) -> int:
        """The number of the next event."""
        self.next_seq += 1
        return self.next_seq - 1

    def add(self, event: Event) -> None:
        """Add an event and wake all who follow."""
        if event.kind in ("partial", "progress"):
            self._newest[event.kind] = event
        else:
            self._kept.append(event)
            partial = self._newest.get("partial")
            over = event.kind in ("final", "failed")
            if over and partial and partial.utterance == event.utterance:
                del self._newest["partial"]
        if len(self._kept) > RETAINED_EVENTS:
            self._lost = self._kept.popleft().seq
        self._wake()

    def close(self) -> None:
        """No event follows."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()

    async def follow(self, after: int) -> AsyncIterator[Event]:
        """Events above ``after`` as they come. Raises Overloaded when some of them were dropped."""
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            while True:
                waker.clear()
                if after < self._lost:
                    raise Overloaded("the events of this stream were not read in time")
                closed = self.closed
                news = self._above(after)
                for event in news:
                    after = event.seq
                    yield event
                if closed:
                    return
                if not waker.is_set():
                    await waker.wait()
        finally:
            self._wakers.discard(waker)

    def _above(self, seq: int) -> list[Event]:
        kept = takewhile(lambda event: event.seq > seq, reversed(self._kept))
        newest = (event for event in self._newest.values() if event.seq > seq)
        return sorted((*kept, *newest), key=lambda event: event.seq)
