"""Diarization of stereo audio with one speaker per channel; needs voice activity detection only."""

from collections.abc import Callable, Sequence

import numpy as np

from engines.diarization.speaker_turns import exclusive_turns
from speech.audio import Audio, Samples
from speech.errors import InvalidRequest
from speech.media.segmentation import Region
from speech.transcript import Diarization, Turn

CHANNEL_SPEAKERS = ("L0", "R0")
"""Labels of the left and the right channel."""
BLEED_DB = 15.0
"""Speech this far below simultaneous speech on the other channel is crosstalk from there."""
_SHORTEST_TURN_S = 0.25
"""Pieces of a turn that are shorter after crosstalk was cut out are artefacts of its edges."""


def diarize_channels(audio: Audio, detect_speech: Callable[[Samples], list[Region]]) -> Diarization:
    """Turns of the two channels: speaker L0 on the left, R0 on the right.

    ``detect_speech`` returns the regions of speech of one channel, in seconds. Speech BLEED_DB
    below simultaneous speech on the other channel gives no turn. Raises InvalidRequest unless
    there are exactly two channels.
    """
    if audio.channels is None or len(audio.channels) != len(CHANNEL_SPEAKERS):
        raise InvalidRequest("stereo_mode needs audio with two channels")
    regions = [detect_speech(channel) for channel in audio.channels]
    turns = [
        Turn(round(start, 3), round(end, 3), CHANNEL_SPEAKERS[channel], channel)
        for channel in (0, 1)
        for region in regions[channel]
        for start, end in _without_bleed(audio, channel, region, regions[1 - channel])
    ]
    turns.sort(key=lambda turn: (turn.start, turn.channel))
    return Diarization(tuple(turns), tuple(exclusive_turns(turns)))


def _without_bleed(
    audio: Audio, channel: int, region: Region, others: Sequence[Region]
) -> list[Region]:
    """What remains of a region without crosstalk from the other channel's regions ``others``."""
    start, end = region
    kept, cut = [], False
    for other_start, other_end in others:
        overlap = max(start, other_start), min(end, other_end)
        if overlap[0] >= overlap[1]:
            continue
        own = _power(audio.cut(*overlap, channel))
        other = _power(audio.cut(*overlap, 1 - channel))
        if own >= other * 10 ** (-BLEED_DB / 10):
            continue
        cut = True
        kept.append((start, overlap[0]))
        start = overlap[1]
    kept.append((start, end))
    return [part for part in kept if not cut or part[1] - part[0] >= _SHORTEST_TURN_S]


def _power(samples: Samples) -> float:
    return float(np.mean(np.square(samples))) if len(samples) else 0.0
