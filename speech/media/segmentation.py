"""Regions of speech, and utterances of bounded length for a recogniser.

Pure functions over the speech probabilities of a voice activity detector, one for each window of
:data:`WINDOW_SAMPLES`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE

WINDOW_SAMPLES = 512
WINDOW_S = WINDOW_SAMPLES / SAMPLE_RATE

Region = tuple[float, float]
"""Start and end in seconds."""


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """Criteria of speech.

    Speech begins where the probability reaches ``threshold`` and ends where it stays below
    ``end_threshold`` for ``min_silence_s``; the thresholds are Silero's own. Speech shorter than
    ``min_speech_s`` is dropped, other speech is extended by ``pad_s`` at each end.
    """

    threshold: float = 0.5
    end_threshold: float = 0.35
    min_speech_s: float = 0.1
    min_silence_s: float = 0.3
    pad_s: float = 0.2


def speech_regions(
    probabilities: NDArray[np.float32], duration: float, options: SpeechOptions | None = None
) -> list[Region]:
    """Disjoint regions of speech in ascending order, from the probabilities [windows] of audio.

    ``duration`` is the length of the audio in seconds: its last window may be incomplete.
    """
    options = options or SpeechOptions()
    spoken = [
        (first * WINDOW_S, last * WINDOW_S)
        for first, last in _runs(probabilities, options)
        if (last - first) * WINDOW_S >= options.min_speech_s
    ]
    return _padded(spoken, options.pad_s, duration)


def utterances(
    regions: Sequence[Region],
    probabilities: NDArray[np.float32],
    max_s: float,
    join_gap_s: float = 1.0,
) -> list[Region]:
    """Disjoint utterances of at most ``max_s`` in ascending order that cover all of the regions.

    Regions at most ``join_gap_s`` apart are joined up to ``max_s``. A longer region is cut in the
    second half of ``max_s``, where speech is least probable.
    """
    packed: list[Region] = []
    for region in regions:
        for start, end in _split(region, probabilities, max_s):
            if packed and start - packed[-1][1] <= join_gap_s and end - packed[-1][0] <= max_s:
                packed[-1] = (packed[-1][0], end)
            else:
                packed.append((start, end))
    return packed


def _runs(probabilities: NDArray[np.float32], options: SpeechOptions) -> list[tuple[int, int]]:
    """Window ranges [first, last) of speech by hysteresis."""
    runs: list[tuple[int, int]] = []
    first: int | None = None
    silent_from: int | None = None
    for window, probability in enumerate(probabilities.tolist()):
        if first is None:
            if probability >= options.threshold:
                first, silent_from = window, None
            continue
        if probability >= options.end_threshold:
            silent_from = None
            continue
        if silent_from is None:
            silent_from = window
        if (window + 1 - silent_from) * WINDOW_S >= options.min_silence_s:
            runs.append((first, silent_from))
            first = None
    if first is not None:
        runs.append((first, len(probabilities) if silent_from is None else silent_from))
    return runs


def _padded(regions: list[Region], pad_s: float, duration: float) -> list[Region]:
    """Regions extended by ``pad_s``, at most to the middle of the gap to a neighbour."""
    middles = [(a[1] + b[0]) / 2 for a, b in pairwise(regions)]
    return [
        (max(start - pad_s, floor), min(end + pad_s, ceiling))
        for (start, end), floor, ceiling in zip(
            regions, [0.0, *middles], [*middles, duration], strict=False
        )
    ]


def _split(region: Region, probabilities: NDArray[np.float32], max_s: float) -> list[Region]:
    start, end = region
    pieces = []
    while end - start > max_s:
        first = math.ceil((start + max_s / 2) / WINDOW_S)
        last = math.floor((start + max_s) / WINDOW_S)
        later_half = probabilities[first:last]
        if len(later_half):
            quietest = _last_minimum(later_half)
            cut = (first + quietest + 0.5) * WINDOW_S
        else:
            cut = start + max_s
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, end)]


def _last_minimum(values: NDArray[np.float32]) -> int:
    """Index of the last of the smallest values."""
    return len(values) - 1 - int(np.argmin(values[::-1]))
