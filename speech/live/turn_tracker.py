"""Which utterance and which turn of a stream is under way, and their events."""

from typing import Literal

from speech.audio import SAMPLE_RATE
from speech.live.emitter import EventEmitter, joined_text
from speech.live.session_options import TurnEnd
from speech.transcript import Word

MAX_TURN_S = 600.0
"""The longest turn; speech without a pause ends its turn then."""


class TurnTracker:
    """Numbers utterances and turns; positions are samples since the session began.

    ``turns`` is what ends a turn, None where the stream has none; it may change between turns.
    ``utterances`` is how many there were before.
    """

    def __init__(self, emitter: EventEmitter, turns: TurnEnd | None, utterances: int) -> None:
        self.turns = turns
        self.turn = 0
        self._emitter = emitter
        self._utterance = self._first_utterance = utterances
        self._begin = 0
        self._partial_text = ""

    @property
    def has_utterances(self) -> bool:
        """Whether the turn under way has an utterance that is over."""
        return self._utterance > self._first_utterance

    def too_long(self, end: int) -> bool:
        """Whether a turn that only a pause ends has reached the longest length."""
        return self.turns == "pause" and end - self._begin >= MAX_TURN_S * SAMPLE_RATE

    def speech_start(self, begin: int, at: int) -> None:
        """An utterance begins at ``begin``, its speech at ``at``."""
        if self.turns == "pause" and not self.has_utterances:
            self._begin = begin
        self._emit_speech("speech_start", begin, at)

    def speech_end(self, at: int, end: int) -> None:
        """Speech ended at ``at``, its utterance ends at ``end``."""
        self._emit_speech("speech_end", at, end)

    def partial(self, begin: int, end: int, words: tuple[Word, ...]) -> None:
        """Emit a partial of the utterance under way, where its text is another than before."""
        text = joined_text(words)
        if text != self._partial_text:
            self._partial_text = text
            about = {"utterance": self._utterance, "turn": self.turn}
            self._emitter.emit_words("partial", begin, end, words, **about)

    def end_utterance(self) -> int:
        """The number of the utterance under way, which is over."""
        self.discard_utterance()
        self._utterance += 1
        return self._utterance - 1

    def discard_utterance(self) -> None:
        """The utterance under way will have no final."""
        self._partial_text = ""

    def end_turn(self, kind: Literal["turn", "cleared"], end: int) -> None:
        """The turn under way is over, or dropped; the next begins at ``end``."""
        self._emitter.emit(kind, self._begin, end, turn=self.turn, utterance=self._utterance)
        self.turn, self._begin, self._first_utterance = self.turn + 1, end, self._utterance

    def _emit_speech(
        self, kind: Literal["speech_start", "speech_end"], start: int, end: int
    ) -> None:
        if self.turns != "commit":
            self._emitter.emit(kind, start, end, utterance=self._utterance, turn=self.turn)
