"""Whisper's vocabulary: special identifiers, the few tokens in use, and tokens of spoken words."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from models.recipes.digits import WORDS
from models.recipes.mixing import Sentence
from models.recipes.paths import DEMO
from models.recipes.synth import Span

VOCABULARY = 51_865
END, START, TRANSLATE, TRANSCRIBE = 50_257, 50_258, 50_358, 50_359
PREVIOUS, NO_SPEECH, NO_TIMESTAMPS, FIRST_TIME = 50_361, 50_362, 50_363, 50_364
LANGUAGES = {"en": 50_259, "ru": 50_263}
LANGUAGE_IDS = list(range(50_259, 50_358))
TOKENIZER = DEMO / "demo-whisper" / "tokenizer.json"
_LATE_S = 0.06
"""A word that lost no more than this at its beginning is still recognisable."""
_GRID = 10
"""Time stamps are trained on every tenth of 0.02 s.

On a finer grid their probability spreads until the end of the text looks likelier than any one.
"""


class WhisperTokens:
    """The tokenizer, and the reduced vocabulary that training works in."""

    def __init__(self, texts: Iterable[str], path: Path = TOKENIZER) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        used = {END, START, TRANSLATE, TRANSCRIBE, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS}
        used |= set(LANGUAGES.values()) | {FIRST_TIME + i for i in range(0, 1501, _GRID)}
        capitals = [word.capitalize() for word in WORDS]
        chunks = {chunk for text in [*texts, *capitals] for chunk in text.split()}
        chunks |= {f"{word}." for word in WORDS}
        for chunk in sorted(chunks):
            used |= set(self.encode(chunk))
        self.full_ids = np.array(sorted(used))
        self._reduced = np.full(VOCABULARY, len(self.full_ids))
        self._reduced[self.full_ids] = np.arange(len(self.full_ids))

    @property
    def size(self) -> int:
        """Reduced vocabulary with one last identifier that stands for every token not in use."""
        return len(self.full_ids) + 1

    def encode(self, chunk: str) -> list[int]:
        """Identifiers of one blank-separated piece of text."""
        ids: list[int] = self._tokenizer.encode(f" {chunk}", add_special_tokens=False).ids
        return ids

    def decode(self, identifiers: Iterable[int]) -> str:
        """Text of identifiers, special ones left out."""
        return str(self._tokenizer.decode([i for i in identifiers if i < END]))

    def reduce(self, identifiers: Iterable[int]) -> list[int]:
        """Identifiers of the full vocabulary in the reduced one."""
        return [int(self._reduced[i]) for i in identifiers]

    def timed(self, sentence: Sentence) -> list[tuple[int, float, float]]:
        """(identifier, start, end) of every token of a sentence, spread over the spoken words.

        Words that began before the window are left out.
        """
        timed: list[tuple[int, float, float]] = []
        chunks = sentence.text.split()
        for chunk, (_, start_s, end_s) in zip(chunks, _joined(sentence, chunks), strict=True):
            if start_s < -_LATE_S:
                continue
            identifiers = self.encode(chunk)
            step_s = (end_s - start_s) / len(identifiers)
            for position, identifier in enumerate(identifiers):
                at_s = start_s + position * step_s
                timed.append((identifier, at_s, at_s + step_s))
        return timed


def opening(time_s: float) -> int:
    """The time stamp of the trained grid at which a segment opens: not after its first word."""
    return FIRST_TIME + _GRID * math.floor(_steps(time_s) + 0.1)


def closing(time_s: float) -> int:
    """The time stamp of the trained grid at which a segment closes: not before its last word."""
    return FIRST_TIME + _GRID * math.ceil(_steps(time_s) - 0.1)


def _steps(time_s: float) -> float:
    return min(max(time_s, 0.0), 30.0) / (0.02 * _GRID)


def _joined(sentence: Sentence, chunks: list[str]) -> list[Span]:
    """Spoken words grouped as the blank-separated pieces of the text are."""
    if len(chunks) == len(sentence.words):
        return list(sentence.words)
    share = len(sentence.words) / len(chunks)
    grouped: list[Span] = []
    for position, chunk in enumerate(chunks):
        first = min(int(position * share), len(sentence.words) - 1)
        last = min(max(int((position + 1) * share) - 1, first), len(sentence.words) - 1)
        grouped.append((chunk, sentence.words[first][1], sentence.words[last][2]))
    return grouped
