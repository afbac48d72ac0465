"""Hypotheses: tokens, and the words they form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from speech.media.segmentation import Region
from speech.transcript import Word

_LONGEST_TOKEN_S = 0.3
"""The longest duration of the last token of a word; tokens have a start and no end."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The tokens recognised in one utterance.

    A token that begins a word begins with a space or ``▁``; ``times`` are the starts of the tokens
    in seconds of the utterance, empty if the model has none; ``log_probabilities`` are natural
    logarithms, empty if the model has none.
    """

    tokens: Sequence[str]
    times: Sequence[float]
    log_probabilities: Sequence[float]

    @property
    def text(self) -> str:
        """The words, separated by spaces."""
        return " ".join("".join(self.tokens).replace("▁", " ").split())


def words_of(hypothesis: Hypothesis, utterance: Region) -> tuple[Word, ...]:
    """Words with ascending times inside the utterance, in seconds of the file; tokens need times.

    A word lasts until the next token begins, at most :data:`_LONGEST_TOKEN_S` after the start of
    its last token. Its probability is the mean over its tokens.
    """
    begin, finish = utterance
    starts = [min(begin + time, finish) for time in hypothesis.times]
    has_probabilities = len(hypothesis.log_probabilities) == len(hypothesis.tokens)
    words: list[_WordBuilder] = []
    begins_word = True
    for index, token in enumerate(hypothesis.tokens):
        text = token.replace("▁", " ")
        begins_word = begins_word or text.startswith(" ")
        if not text.strip():
            continue
        if begins_word:
            words.append(_WordBuilder(starts[index]))
        word, begins_word = words[-1], text.endswith(" ")
        following = starts[index + 1] if index + 1 < len(starts) else finish
        word.text += text.strip()
        word.end = min(following, starts[index] + _LONGEST_TOKEN_S)
        if has_probabilities:
            word.probabilities.append(math.exp(min(hypothesis.log_probabilities[index], 0.0)))
    return tuple(
        Word(f" {w.text}", w.start, w.end, fmean(w.probabilities) if w.probabilities else None)
        for w in words
    )


@dataclass(slots=True)
class _WordBuilder:
    start: float
    end: float = 0.0
    text: str = ""
    probabilities: list[float] = field(default_factory=list)
