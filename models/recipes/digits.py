"""Recorded English digits: the Free Spoken Digit Dataset (CC BY-SA 4.0), where it is at hand."""

from dataclasses import dataclass

import numpy as np
import soundfile
import soxr

from models.recipes.grammar import Split
from models.recipes.paths import assets

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_HELDOUT_INDICES = 5  # the data set's own test split: indices 0 to 4


@dataclass(frozen=True)
class Recording:
    """One digit as int16 at 16 kHz."""

    samples: np.ndarray
    word: str
    speaker: str
    index: int


def digit_recordings(split: Split) -> list[Recording]:
    """The recordings of a split, in a fixed order; none when the data set is absent."""
    recordings: list[Recording] = []
    for path in sorted((assets() / "fsdd" / "recordings").glob("*.wav")):
        digit, speaker, index = path.stem.split("_")
        if (int(index) < _HELDOUT_INDICES) != (split == "heldout"):
            continue
        samples, rate_hz = soundfile.read(path, dtype="float32")
        wide = soxr.resample(samples, rate_hz, 16_000)
        pcm = np.round(np.clip(wide, -1, 1) * 32767).astype(np.int16)
        recordings.append(Recording(pcm, WORDS[int(digit)], speaker, int(index)))
    return recordings
