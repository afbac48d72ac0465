"""The part of a live stream that is still needed."""

from collections import deque

import numpy as np

from speech.audio import Samples


class AudioBuffer:
    """Samples by their position in the stream; ``len`` is the length of the whole stream."""

    def __init__(self) -> None:
        self._pieces: deque[Samples] = deque()
        self._base = 0
        self._end = 0

    def __len__(self) -> int:
        return self._end

    def append(self, samples: Samples) -> None:
        """Add the samples that follow."""
        self._pieces.append(samples)
        self._end += len(samples)

    def cut(self, begin: int, end: int) -> Samples:
        """The samples [begin, end) as one array."""
        assert self._base <= begin, "these samples were dropped"
        parts = []
        at = self._base
        for piece in self._pieces:
            if at >= end:
                break
            if at + len(piece) > begin:
                parts.append(piece[max(begin - at, 0) : end - at])
            at += len(piece)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def drop(self, before: int) -> None:
        """Drop whole pieces that end before a position."""
        while self._pieces and self._base + len(self._pieces[0]) <= before:
            self._base += len(self._pieces.popleft())
