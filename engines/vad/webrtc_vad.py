"""WebRTC's voice activity detector on one live stream."""

import numpy as np
import webrtcvad
from numpy.typing import NDArray

from engines.vad.framing import whole_frames
from speech.audio import SAMPLE_RATE, Samples
from speech.media.segmentation import WINDOW_SAMPLES

_FRAME = SAMPLE_RATE // 100
"""Samples of 10 ms, the shortest frame of WebRTC's detector."""


class WebRtcVad:
    """:class:`speech.ports.VoiceActivity` of one stream by WebRTC's detector.

    A window has probability 1 if any of the 10 ms frames that end in it is speech, else 0.
    ``aggressiveness`` is 0 to 3; the higher, the less is classified as speech. Runs on the event
    loop: a window takes some microseconds.
    """

    def __init__(self, aggressiveness: int) -> None:
        self._detector = webrtcvad.Vad(aggressiveness)
        self._pending = np.zeros(0, np.float32)
        self._processed = 0  # samples in whole frames
        self._completed = 0  # windows
        self._partial_window = np.float32(0)  # probability of the window not complete yet

    async def feed(self, samples: Samples) -> NDArray[np.float32]:
        """See the port."""
        frames, self._pending = whole_frames(self._pending, samples, _FRAME)
        pcm = (np.clip(frames, -1, 1) * 32767).astype(np.int16)
        speech = [self._detector.is_speech(frame.tobytes(), SAMPLE_RATE) for frame in pcm]
        ends = self._processed + _FRAME * np.arange(1, len(frames) + 1)
        self._processed += _FRAME * len(frames)
        complete = (self._processed + len(self._pending)) // WINDOW_SAMPLES - self._completed
        probabilities = np.zeros(complete + 1, np.float32)  # the last window is not complete
        probabilities[0] = self._partial_window
        np.maximum.at(probabilities, (ends - 1) // WINDOW_SAMPLES - self._completed, speech)
        self._completed += complete
        self._partial_window = probabilities[-1]
        return probabilities[:-1]
