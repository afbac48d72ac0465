"""Decoded audio as a value: 16 kHz float32, the mono mix and, on request, the channels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Hz; the rate of every model of the catalogue."""

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Audio:
    """Decoded audio at 16 kHz; read-only after it crossed a process.

    ``mono`` is float32 [samples] in [-1, 1]; ``channels`` is float32 [channels, samples] or None
    when the channels were not kept or the source has one. ``warnings`` describe anomalies of the
    source file.
    """

    mono: Samples
    channels: Samples | None = None
    warnings: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.mono) / SAMPLE_RATE

    def track(self, channel: int | None) -> Samples:
        """The samples of one channel, or of the mono mix for None."""
        if channel is None:
            return self.mono
        if self.channels is None:
            raise ValueError("the channels of this audio were not kept")
        track: Samples = self.channels[channel]
        return track

    def cut(self, start: float, end: float, channel: int | None = None) -> Samples:
        """Samples from ``start`` to ``end`` seconds, as a view."""
        return self.track(channel)[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
