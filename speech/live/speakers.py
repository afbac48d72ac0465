"""Who speaks in a live stream: speaker embeddings clustered as they come."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from speech.errors import InvalidRequest

MAX_SPEAKERS = 32
SAME_VOICE = 0.5
"""Cosine similarity from which two utterances are of one voice, as in offline clustering."""
ENOUGH_S = 1.0
"""Seconds of speech that may found a new speaker; shorter utterances join the nearest."""
MAX_VOICE_S = 3600.0
"""The weight of a voice in a resumed stream is at most that of this much speech."""
MAX_DIMENSIONS = 1024
_WIRE = np.dtype("<f2")


def speaker_label(number: int) -> str:
    """The label of the ``number``th speaker in order of appearance, from 0."""
    return f"SPEAKER_{number:02d}"


class OnlineSpeakers:
    """Labels utterances; a label once given stays with its voice.

    ``voices`` are the labels that an earlier part of the stream was given, each with its
    :meth:`voice`. Raises InvalidRequest for labels or vectors that no instance gave.
    """

    def __init__(self, voices: Mapping[str, bytes] | None = None) -> None:
        voices = voices or {}
        labels = [speaker_label(number) for number in range(min(len(voices), MAX_SPEAKERS))]
        if sorted(voices) != labels:
            first = speaker_label(0)
            raise InvalidRequest(f"voices must be of speakers from {first} on, without a gap")
        self._sums = {label: _sum(voices[label]) for label in labels}
        if len({total.size for total in self._sums.values()}) > 1:
            raise InvalidRequest("voices must all be of one length")

    def label(self, embedding: NDArray[np.float32], seconds: float) -> str:
        """The speaker of an utterance, ``SPEAKER_00`` and on; ``embedding`` has length 1."""
        if any(total.shape != embedding.shape for total in self._sums.values()):
            # The earlier part was embedded by another model: its speakers cannot be matched.
            self._sums = dict.fromkeys(self._sums, np.zeros_like(embedding))
        likeness = {
            label: float(total @ embedding) / _length(total) for label, total in self._sums.items()
        }
        nearest = max(likeness, key=likeness.__getitem__, default=None)
        if nearest is None or (
            likeness[nearest] < SAME_VOICE
            and seconds >= ENOUGH_S
            and len(self._sums) < MAX_SPEAKERS
        ):
            nearest = speaker_label(len(self._sums))
            self._sums[nearest] = np.zeros_like(embedding)
        self._sums[nearest] = self._sums[nearest] + embedding * np.float32(seconds)
        return nearest

    def voice(self, label: str) -> bytes:
        """The sum of a speaker's embeddings so far, float16; its length is about the seconds."""
        total = self._sums[label]
        return (total * min(1.0, MAX_VOICE_S / _length(total))).astype(_WIRE).tobytes()


def _length(total: NDArray[np.float32]) -> float:
    return max(float(np.linalg.norm(total)), 1e-9)


def _sum(voice: bytes) -> NDArray[np.float32]:
    if not 0 < len(voice) <= MAX_DIMENSIONS * _WIRE.itemsize or len(voice) % _WIRE.itemsize:
        raise InvalidRequest("a voice is no vector of float16")
    total = np.frombuffer(voice, _WIRE).astype(np.float32)
    if not np.isfinite(total).all():
        raise InvalidRequest("a voice has a number that is not finite")
    return total
