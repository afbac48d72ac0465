"""Speaker embeddings with sherpa-onnx."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.batching import MicroBatcher
from engines.out_of_memory import failure
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, ModelNotInstalled, ModelUnavailable, OutOfMemory

_FILE = "embedding.onnx"
_SHORTEST = SAMPLE_RATE
"""Samples; shorter utterances are padded with silence, the network needs some frames."""
_LONGEST = 30 * SAMPLE_RATE
_MIDDLE = 10 * SAMPLE_RATE
"""Samples in the middle that are used of an utterance longer than ``_LONGEST``."""


class SpeakerEngine:
    """:class:`speech.ports.SpeakerEmbedder`: one loaded model and a thread of its own.

    sherpa-onnx 2.0 releases the interpreter's lock while it computes, but not while it copies
    samples: 0.3 ms for a second of audio, so it gets them second by second.
    """

    def __init__(self, path: Path, *, device: str, threads: int = 1) -> None:
        """Load ``embedding.onnx`` of a ``sherpa_onnx`` model from a directory.

        ``device`` "cuda" needs sherpa-onnx's CUDA build. Raises ModelNotInstalled,
        ModelUnavailable.
        """
        if importlib.util.find_spec("sherpa_onnx") is None:
            raise ModelNotInstalled(
                "sherpa-onnx is not installed on this server; its operator installs "
                "speechgraph[onnx-asr]"
            )
        import sherpa_onnx

        if not (path / _FILE).is_file():
            lacking = f"{path} holds no {_FILE}"
            raise ModelNotInstalled("a file of the speaker model is missing", lacking)
        config = sherpa_onnx.SpeakerEmbeddingExtractorConfig(
            model=str(path / _FILE), num_threads=threads, provider=device
        )
        try:
            self._extractor = sherpa_onnx.SpeakerEmbeddingExtractor(config)
        except Exception as error:
            raise ModelUnavailable(
                "the speaker model does not load", detail=f"{path}: {error}"
            ) from error
        self._batcher: MicroBatcher[Samples, NDArray[np.float32]] = MicroBatcher(
            self._compute, max_batch=1
        )

    def warm_up(self) -> None:
        """Embed a second of noise."""
        self._vector(np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32))

    async def embed(self, samples: Samples) -> NDArray[np.float32]:
        """The embedding, float32 [dimensions] of norm 1, of mono samples at 16 kHz.

        Of more than 30 s the middle 10 s are used. Raises EngineFailed, OutOfMemory, Overloaded.
        """
        return await self._batcher.submit(samples)

    def _compute(
        self, batch: Sequence[Samples]
    ) -> list[NDArray[np.float32] | EngineFailed | OutOfMemory]:
        try:
            return [self._vector(samples) for samples in batch]
        except Exception as error:
            return [failure("the speaker model failed", error)]

    def _vector(self, samples: Samples) -> NDArray[np.float32]:
        if len(samples) > _LONGEST:
            first = (len(samples) - _MIDDLE) // 2
            samples = samples[first : first + _MIDDLE]
        samples = np.pad(samples, (0, max(0, _SHORTEST - len(samples))))
        stream = self._extractor.create_stream()
        for first in range(0, len(samples), SAMPLE_RATE):
            stream.accept_waveform(SAMPLE_RATE, samples[first : first + SAMPLE_RATE].tolist())
        stream.input_finished()
        vector = np.array(self._extractor.compute(stream), np.float32)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            raise ValueError("the embedding of this audio is zero or not finite")
        return vector / np.float32(length)
