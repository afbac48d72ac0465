"""Partials of an utterance recogniser: what two hypotheses in a row agree on is never taken back.

The growing utterance is recognised again and again, see :func:`next_pass`, and each hypothesis is
compared with the one before it (LocalAgreement).
"""

import unicodedata
from dataclasses import replace

from speech.audio import SAMPLE_RATE
from speech.transcript import Word

MIN_STEP = SAMPLE_RATE
"""Samples."""


def next_pass(last_pass: int, min_step: int = MIN_STEP) -> int:
    """The length of the utterance at which it is recognised again, samples; 0 before the first.

    It grows by a quarter, at least by ``min_step``. An early pass over less than four steps grows
    by more than a quarter anyway; so each pass covers at least 1.25 times what the one before
    covered, and all passes over an utterance of ``n`` samples together cover at most
    ``n / (1 - 1 / 1.25) = 5 n`` samples, in at most ``5 + log(n / (4 * min_step), 1.25)`` passes.
    """
    return last_pass + max(min_step, -(-last_pass // 4))


class Agreement:
    """The committed and the tentative words of one utterance, times in seconds of it.

    Words are compared without case and punctuation. A committed word keeps the text and the times
    that it had when it was committed.
    """

    def __init__(self, committed: tuple[Word, ...] = ()) -> None:
        self._committed = committed
        self._tentative: tuple[Word, ...] = ()

    def update(self, words: tuple[Word, ...]) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
        """Committed and tentative words after one more hypothesis about more audio."""
        rest = self._after_committed(words)
        agreed = _common(self._tentative, rest)
        self._committed += rest[:agreed]
        self._tentative = rest[agreed:]
        return self._committed, self._tentative

    @property
    def committed(self) -> tuple[Word, ...]:
        """The words that are never taken back."""
        return self._committed

    def behind(self, cut_s: float) -> "Agreement":
        """The same about the utterance that follows when this one is cut."""
        return Agreement(tuple(w.shifted(-cut_s) for w in self._committed if w.start >= cut_s))

    def final(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        """The words of the utterance, given the hypothesis about all of it."""
        return self._committed + self._after_committed(words)

    def _after_committed(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        """The words behind the committed ones: by their number if the hypothesis begins with them,
        else by time; they begin where the last committed word ends, at the earliest."""
        if not self._committed:
            return words
        count, last = len(self._committed), self._committed[-1]
        if _common(self._committed, words) < count:
            over = (i + 1 for i, word in enumerate(words) if _is_over(word, last))
            count = max(over, default=0)
        return tuple(
            replace(word, start=max(word.start, last.end), end=max(word.end, last.end))
            for word in words[count:]
        )


def _is_over(word: Word, last: Word) -> bool:
    """Whether a word lies within what is committed, or is its last word a little later."""
    if word.start < last.end and _key(word) == _key(last):
        return True
    return (word.start + word.end) / 2 <= last.end


def _common(one: tuple[Word, ...], other: tuple[Word, ...]) -> int:
    """With how many equal words both begin."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if _key(a) != _key(b):
            return index
    return min(len(one), len(other))


def _key(word: Word) -> str:
    text = word.text.strip().casefold()
    return "".join(c for c in text if unicodedata.category(c)[0] not in "PSZ") or text
