"""Events of a live stream, placed in its seconds and with their lag."""

from collections import deque
from collections.abc import Callable
from typing import Any

from speech.audio import SAMPLE_RATE
from speech.live.events import Event, EventLog, Kind
from speech.transcript import Word, whole_ms


class EventEmitter:
    """Appends events to the log of a stream; positions are samples since the session began.

    ``offset_s`` is where the session begins in the stream; ``clock`` is that of the arrivals.
    """

    def __init__(self, log: EventLog, offset_s: float, clock: Callable[[], float]) -> None:
        self._log = log
        self.offset_s = offset_s
        self._clock = clock
        self._arrivals: deque[tuple[int, float]] = deque()

    def seconds(self, position: int) -> float:
        """Where a position lies in the stream."""
        return self.offset_s + position / SAMPLE_RATE

    def received(self, until: int, arrived: float) -> None:
        """The samples up to ``until`` arrived at this time."""
        self._arrivals.append((until, arrived))

    def forget(self, before: int) -> None:
        """No later event ends before this position."""
        while self._arrivals and self._arrivals[0][0] <= before:
            self._arrivals.popleft()

    def arrival(self, position: int) -> float:
        """When the sample before ``position`` arrived."""
        found = self._clock()
        for until, arrived in reversed(self._arrivals):
            if until < position:
                break
            found = arrived
        return found

    def emit(
        self, kind: Kind, start: int, end: int, arrived: float | None = None, **fields: Any
    ) -> Event:
        """An event about [start, end), whose last sample arrived at ``arrived``."""
        if arrived is None:
            arrived = self.arrival(end)
        event = Event(
            kind,
            self._log.number(),
            whole_ms(self.seconds(start)),
            whole_ms(self.seconds(end)),
            lag_s=whole_ms(max(0.0, self._clock() - arrived)),
            **fields,
        )
        self._log.add(event)
        return event

    def emit_words(
        self,
        kind: Kind,
        begin: int,
        end: int,
        words: tuple[Word, ...],
        arrived: float | None = None,
        **fields: Any,
    ) -> Event:
        """An event with words, whose times are seconds since ``begin``."""
        placed = tuple(word.shifted(self.seconds(begin)).rounded() for word in words)
        text = joined_text(words)
        return self.emit(kind, begin, end, arrived, text=text, words=placed, **fields)


def joined_text(words: tuple[Word, ...]) -> str:
    """The text of the words."""
    return "".join(word.text for word in words).strip()
