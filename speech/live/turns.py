"""What is told of the turns of a stream: words that are never taken back, then the whole text.

A session with :attr:`speech.live.session.SessionOptions.turns` numbers its turns from 0. It says a
``turn`` when one is over, from ``start`` to ``end``, or ``cleared`` when one was forgotten; either
names as ``utterance`` the first that is no longer in it. Finals follow, or ``failed`` with ``code``
and ``text`` for an utterance that could not be recognised.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from speech.live.events import Event
from speech.transcript import Word


@dataclass(frozen=True, slots=True)
class Delta:
    """Words that follow those which were told of their turn before; they stay."""

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
    """Follows the events of a session. Turns are told one after the other.

    Words of an utterance that goes on wait until all before it are final.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._ends: deque[Event] = deque()
        self._over = 0
        """Utterances that are final."""
        self._ahead: Event | None = None
        self._words: list[Word] = []
        self._told = 0
        self._text = ""
        self._failure: Event | None = None

    def process(self, event: Event) -> Iterator[Delta | TurnTranscript]:
        """What an event brings."""
        match event.kind:
            case "partial":
                self._ahead = event
            case "final":
                self._over += 1
                self._words += event.words
            case "failed":
                self._over += 1
                self._failure = self._failure or event
            case "turn" | "cleared":
                self._ends.append(event)
            case _:
                return
        yield from self._grow()
        while self._ends and self._ends[0].utterance <= self._over:
            yield from self._end(self._ends.popleft())
            yield from self._grow()

    def _grow(self) -> Iterator[Delta]:
        forgotten = self._ends and self._ends[0].kind == "cleared"
        if forgotten or self._failure is not None:
            return
        ahead = self._ahead
        goes_on = ahead is not None and (ahead.turn, ahead.utterance) == (self._turn, self._over)
        words = (*self._words, *(ahead.words if ahead is not None and goes_on else ()))
        new = words[self._told :]
        if new:
            text = "".join(word.text for word in new)
            text = text if self._text else text.lstrip()
            self._told, self._text = len(words), self._text + text
            yield Delta(self._turn, text, new)

    def _end(self, end: Event) -> Iterator[TurnTranscript]:
        if end.kind == "turn":
            words, seconds = tuple(self._words), end.end - end.start
            yield TurnTranscript(self._turn, self._text, words, seconds, self._failure)
        self._turn, self._words, self._told, self._text = self._turn + 1, [], 0, ""
        self._failure = None
