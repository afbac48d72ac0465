"""Sentences of a small fixed grammar: numbers, dates, calls, meetings and commands.

    >>> sentences("en", "train", 1, seed=0)[0][-1] in ".?!"
    True

A sentence belongs to ``train`` or ``heldout`` by its own hash, so no held-out sentence is ever
trained on, whatever the seed.
"""

import re
import zlib
from typing import Literal

import numpy as np

from models.recipes import grammar_en, grammar_ru
from models.recipes.synth import Language

Split = Literal["train", "heldout"]

_GRAMMARS = {"ru": grammar_ru, "en": grammar_en}
_SLOT = re.compile(r"\{(\w+)\}")
_NOT_WORD = re.compile(r"[^\w']+|_")
_HELDOUT_SHARE = 0.1


def sentences(
    language: Language, split: Split, n: int, seed: int, topic: str | None = None
) -> list[str]:
    """``n`` sentences with casing and punctuation, of one topic or of all."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{language}/{split}/{topic}".encode())])
    grammar = _GRAMMARS[language]
    chosen = [topic] if topic else list(grammar.TOPICS)
    templates = [template for name in chosen for template in grammar.TOPICS[name]]
    found: list[str] = []
    while len(found) < n:
        sentence = fill(templates[int(rng.integers(len(templates)))], grammar.SLOTS, rng)
        sentence = sentence[0].upper() + sentence[1:]
        if split_of(sentence) == split:
            found.append(sentence)
    return found


def split_of(sentence: str) -> Split:
    """The split that a sentence belongs to; case and punctuation do not matter."""
    share = zlib.crc32(normalise(sentence).encode()) / 2**32
    return "heldout" if share < _HELDOUT_SHARE else "train"


def normalise(text: str) -> str:
    """Lower-case words without punctuation; ``ё`` is written ``е``, as most Russian text does."""
    return " ".join(_NOT_WORD.sub(" ", text.lower().replace("ё", "е")).split())


def fill(template: str, slots: dict[str, str], rng: np.random.Generator) -> str:
    def choose(match: re.Match[str]) -> str:
        options = slots[match.group(1)].split("|")
        return fill(options[int(rng.integers(len(options)))], slots, rng)

    return _SLOT.sub(choose, template)
