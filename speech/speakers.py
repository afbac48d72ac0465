"""Who speaks in a live stream: speaker embeddings clustered as they come."""

import numpy as np
from numpy.typing import NDArray

MAX_SPEAKERS = 32
SAME_VOICE = 0.5
"""Cosine similarity from which two utterances are of one voice, as in offline clustering."""
ENOUGH_S = 1.0
"""Seconds of speech that may found a new speaker; shorter utterances join the nearest."""


class OnlineSpeakers:
    """Labels utterances; a label once given stays with its voice."""

    def __init__(self) -> None:
        self._sums: list[NDArray[np.float32]] = []

    def label(self, embedding: NDArray[np.float32], seconds: float) -> str:
        """The speaker of an utterance, ``SPEAKER_00`` and on; ``embedding`` has length 1."""
        likeness = [float(total @ embedding / np.linalg.norm(total)) for total in self._sums]
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
        return f"SPEAKER_{nearest:02d}"
