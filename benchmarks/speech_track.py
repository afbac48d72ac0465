"""The audio of the benchmarks: held-out sentences of the demo with the times of their words."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RATE = 16_000
FRAME_S = 0.1
FRAME_SAMPLES = round(RATE * FRAME_S)
HELDOUT = Path(__file__).parent.parent / "models" / "demo" / "audio" / "heldout"
GAP_S = 0.3
"""Silence between two clips, each of which has half a second of its own: ends an utterance."""


@dataclass(frozen=True)
class Track:
    """Sentences one after the other, which streams loop from any offset.

    ``words`` are (word, end), ``onsets`` the starts of the first words of sentences; in seconds and
    in order.
    """

    pcm: NDArray[np.int16]
    words: tuple[tuple[str, float], ...]
    onsets: tuple[float, ...]

    @staticmethod
    @cache
    def of_heldout(gap_s: float = GAP_S) -> "Track":
        """The held-out clips of the demo, alternating Russian and English; about three minutes."""
        lines = (HELDOUT / "reference.jsonl").read_text(encoding="utf-8").splitlines()
        clips = sorted(map(json.loads, lines), key=lambda clip: clip["file"][3:])
        pieces, words, onsets, at = [], [], [], 0
        for clip in clips:
            begin = at / RATE
            words += [(plain(w["word"]), begin + w["end"]) for w in clip["words"]]
            onsets.append(begin + clip["words"][0]["start"])
            pieces += [_decoded(HELDOUT / clip["file"]), np.zeros(round(gap_s * RATE), np.int16)]
            at += sum(len(piece) for piece in pieces[-2:])
        at -= at % FRAME_SAMPLES
        return Track(np.concatenate(pieces)[:at], tuple(words), tuple(onsets))

    @property
    def seconds(self) -> float:
        """Length of the loop."""
        return len(self.pcm) / RATE

    @property
    def spoken_share(self) -> float:
        """Share of the loop from the first word to the last of each sentence."""
        ends = [end for _, end in self.words]
        later = (*self.onsets[1:], math.inf)
        last = [max(end for end in ends if end < onset) for onset in later]
        return (sum(last) - sum(self.onsets)) / self.seconds

    def samples(self, seconds: float, offset: float = 0.0) -> NDArray[np.int16]:
        """PCM from ``offset`` on, looped; both in seconds."""
        first = round(offset * RATE)
        return np.take(self.pcm, range(first, first + round(seconds * RATE)), mode="wrap")

    def words_from(self, offset: float) -> Iterator[tuple[str, float]]:
        """Words and their ends in seconds since ``offset``, looped."""
        for base in self._rounds(offset):
            yield from ((word, base + end) for word, end in self.words if base + end > 0)

    def onsets_from(self, offset: float) -> Iterator[float]:
        """Starts of sentences in seconds since ``offset``, looped."""
        for base in self._rounds(offset):
            yield from (base + onset for onset in self.onsets if base + onset >= 0)

    def _rounds(self, offset: float) -> Iterator[float]:
        base = -offset
        while True:
            yield base
            base += self.seconds


def _decoded(path: Path) -> NDArray[np.int16]:
    with av.open(path) as container:
        resampler = av.AudioResampler("s16", "mono", RATE)
        blocks = [
            block.to_ndarray()[0]
            for frame in (*container.decode(audio=0), None)
            for block in resampler.resample(frame)
        ]
    return np.concatenate(blocks)


def plain(word: str) -> str:
    """A word in lower case without punctuation."""
    return "".join(re.findall(r"\w+", word.lower()))


@cache
def frames(kind: type[np.float32] | type[np.int16], gap_s: float) -> tuple[bytes, ...]:
    """The track cut into frames, as the bytes of a message."""
    pcm: NDArray[Any] = Track.of_heldout(gap_s).pcm
    if kind is np.float32:
        pcm = pcm.astype(np.float32) / np.float32(32768)
    return tuple(
        pcm[first : first + FRAME_SAMPLES].tobytes() for first in range(0, len(pcm), FRAME_SAMPLES)
    )
