"""Audio for live streams, in which a word of the fakes is a stretch of one sample value."""

import itertools
from collections.abc import Iterator

import numpy as np

from speech.audio import SAMPLE_RATE, Samples
from speech.transcript import Word

FULL_SCALE = 32768
WHISPERED = 32_000
"""A word that is no speech to the voice activity detector of the fakes."""


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def speak(*numbers: int, word_s: float = 0.3, gap_s: float = 0.1) -> Samples:
    """Words that the fakes recognise, each with a gap behind it that ends no utterance."""
    words = [np.full(round(word_s * SAMPLE_RATE), n / FULL_SCALE, np.float32) for n in numbers]
    return np.concatenate([part for word in words for part in (word, silence(gap_s))])


def pcm(*parts: Samples) -> bytes:
    return np.round(np.concatenate(parts) * (FULL_SCALE - 1)).astype("<i2").tobytes()


def exact(*parts: Samples) -> bytes:
    """PCM16 in which the words of the fakes keep their value."""
    return (np.concatenate(parts) * FULL_SCALE).astype("<i2").tobytes()


def frames(data: bytes, size: int) -> Iterator[bytes]:
    return (data[first : first + size] for first in range(0, len(data), size))


def numbers_in(samples: Samples) -> tuple[Word, ...]:
    """The words of the fakes, also the one that is being spoken."""
    values = np.round(samples * FULL_SCALE).astype(int)
    edges = np.flatnonzero(np.diff(values, prepend=0, append=0))
    return tuple(
        Word(f" {values[a]}", a / SAMPLE_RATE, b / SAMPLE_RATE)
        for a, b in itertools.pairwise(edges)
        if values[a]
    )
