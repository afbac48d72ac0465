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
"""A voice that was heard for longer counts no more than this for whoever resumes a stream."""
MAX_DIMENSIONS = 1024
_PREFIX = "SPEAKER_"
_WIRE = np.dtype("<f2")


class OnlineSpeakers:
    """Labels utterances; a label once given stays with its voice.

    ``voices`` are the labels that an earlier part of the stream was given, each with its
    :meth:`voice`. Raises InvalidRequest for what this class never said.
    """

    def __init__(self, voices: Mapping[str, bytes] | None = None) -> None:
        voices = voices or {}
        labels = [_label(number) for number in range(min(len(voices), MAX_SPEAKERS))]
        if sorted(voices) != labels:
            raise InvalidRequest(f"voices must be of speakers from {_label(0)} on, without a gap")
        self._sums = [_sum(voices[label]) for label in labels]
        if len({total.size for total in self._sums}) > 1:
            raise InvalidRequest("voices must all be of one length")

    def label(self, embedding: NDArray[np.float32], seconds: float) -> str:
        """The speaker of an utterance, ``SPEAKER_00`` and on; ``embedding`` has length 1."""
        if self._sums and self._sums[0].shape != embedding.shape:
            # Another model heard the earlier part: who spoke there will not be recognised.
            self._sums = [np.zeros_like(embedding) for _ in self._sums]
        likeness = [float(total @ embedding) / _length(total) for total in self._sums]
        nearest = int(np.argmax(likeness)) if likeness else -1
        new = nearest < 0 or (
            likeness[nearest] < SAME_VOICE
            and seconds >= ENOUGH_S
            and len(self._sums) < MAX_SPEAKERS
        )
        if new:
            self._sums.append(embedding * np.float32(seconds))
            nearest = len(self._sums) - 1
        else:
            self._sums[nearest] = self._sums[nearest] + embedding * np.float32(seconds)
        return _label(nearest)

    def voice(self, label: str) -> bytes:
        """What a speaker was like so far: a vector of float16, its length about the seconds."""
        total = self._sums[int(label.removeprefix(_PREFIX))]
        return (total * min(1.0, MAX_VOICE_S / _length(total))).astype(_WIRE).tobytes()


def _label(number: int) -> str:
    return f"{_PREFIX}{number:02d}"


def _length(total: NDArray[np.float32]) -> float:
    return max(float(np.linalg.norm(total)), 1e-9)


def _sum(voice: bytes) -> NDArray[np.float32]:
    if not 0 < len(voice) <= MAX_DIMENSIONS * _WIRE.itemsize or len(voice) % _WIRE.itemsize:
        raise InvalidRequest("a voice is no vector of float16")
    total = np.frombuffer(voice, _WIRE).astype(np.float32)
    if not np.isfinite(total).all():
        raise InvalidRequest("a voice has a number that is not finite")
    return total
