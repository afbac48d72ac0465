"""The turns of a stream: deltas of words that are never taken back, then the whole text.

A session whose mode has turns numbers them from 0. It emits ``turn`` when one is over, from
``start`` to ``end``, or ``cleared`` when one was dropped; in either, ``utterance`` is the first
utterance after it. Finals follow, or ``failed`` with ``code`` and ``text`` for an utterance that
could not be recognised.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from speech.live.events import Event
from speech.transcript import Word


@dataclass(frozen=True, slots=True)
class Delta:
    """Words behind those of the deltas before it in the same turn; they stay."""

    turn: int
    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class TurnTranscript:
    """All of a turn of ``seconds``; ``text`` is that of its deltas, one after the other.

    With ``failure``, a ``failed`` event, some of it could not be recognised.
    """

    turn: int
    text: str
    words: tuple[Word, ...]
    seconds: float
    failure: Event | None = None


class TurnAssembler:
    """Makes deltas and transcripts from the events of a session, one turn after the other.

    Words of an utterance under way wait until all before it are final.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._ends: deque[Event] = deque()
        self._final_count = 0
        """Utterances that are final."""
        self._partial: Event | None = None
        self._words: list[Word] = []
        self._sent = 0
        self._text = ""
        self._failure: Event | None = None

    def process(self, event: Event) -> Iterator[Delta | TurnTranscript]:
        """The deltas and transcripts that an event completes."""
        match event.kind:
            case "partial":
                self._partial = event
            case "final":
                self._final_count += 1
                self._words += event.words
            case "failed":
                self._final_count += 1
                self._failure = self._failure or event
            case "turn" | "cleared":
                self._ends.append(event)
            case _:
                return
        yield from self._grow()
        while self._ends and self._ends[0].utterance <= self._final_count:
            yield from self._end(self._ends.popleft())
            yield from self._grow()

    def _grow(self) -> Iterator[Delta]:
        cleared = self._ends and self._ends[0].kind == "cleared"
        if cleared or self._failure is not None:
            return
        partial = self._partial
        words = tuple(self._words)
        following = (self._turn, self._final_count)
        if partial is not None and (partial.turn, partial.utterance) == following:
            words += partial.words
        new = words[self._sent :]
        if new:
            text = "".join(word.text for word in new)
            text = text if self._text else text.lstrip()
            self._sent, self._text = len(words), self._text + text
            yield Delta(self._turn, text, new)

    def _end(self, end: Event) -> Iterator[TurnTranscript]:
        if end.kind == "turn":
            words, seconds = tuple(self._words), end.end - end.start
            yield TurnTranscript(self._turn, self._text, words, seconds, self._failure)
        self._turn, self._words, self._sent, self._text = self._turn + 1, [], 0, ""
        self._failure = None
