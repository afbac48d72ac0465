"""Diarization with pyannote.audio.

pyannote.audio and torch are imported when an engine is constructed: a node of the light backend
has neither.
"""

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from engines.cancellation import CancelCheck, hold_lock, raise_if_cancelled
from engines.diarization.diarize_options import check_speaker_counts
from engines.diarization.speaker_turns import label_by_appearance, turns_within
from engines.out_of_memory import in_smaller_batches
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, EngineFailed, ModelNotInstalled, ModelUnavailable
from speech.ports import DiarizeOptions
from speech.transcript import Diarization


class PyannoteEngine:
    """A pyannote.audio pipeline from a local directory."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        """Load ``config.yaml`` and the models it names; ``threads`` is set for torch process-wide.

        Raises ModelUnavailable, also where pyannote.audio is not installed.
        """
        try:
            with warnings.catch_warnings():
                # torchcodec would decode files; the pipeline here gets samples.
                warnings.filterwarnings("ignore", message=r"\s*torchcodec")
                import torch
                from pyannote.audio import Pipeline
        except ImportError as error:
            raise ModelNotInstalled(
                "pyannote.audio is not installed on this server; its operator installs "
                "speechgraph[diarization], or uses a model of the light backend",
                str(error),
            ) from error
        torch.set_num_threads(threads)
        try:
            pipeline: Any = Pipeline.from_pretrained(path)
        except Exception as error:
            raise ModelUnavailable(
                "the pyannote pipeline does not load", detail=f"{path}: {error}"
            ) from error
        if device == "cuda":
            pipeline.to(torch.device("cuda"))
        self._pipeline = pipeline
        self._batch_sizes = (pipeline.segmentation_batch_size, pipeline.embedding_batch_size)
        self._from_numpy = torch.from_numpy
        self._lock = threading.Lock()
        self.compute_type = "float32"

    def warm_up(self) -> None:
        """Segment and embed a second of noise."""
        noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
        waveform = self._from_numpy(noise)[None]
        # Not as a whole: it would embed nothing, as noise has no speaker.
        self._pipeline._segmentation({"waveform": waveform, "sample_rate": SAMPLE_RATE})
        self._pipeline._embedding(waveform[None])

    def diarize(
        self, samples: Samples, options: DiarizeOptions, cancelled: CancelCheck = lambda: False
    ) -> Diarization:
        """See :class:`engines.diarization.backends.DiarizationEngine`."""
        check_speaker_counts(options)
        if not samples.any():  # empty, or digital silence
            return Diarization((), ())

        def hook(*_: Any, **__: Any) -> None:
            raise_if_cancelled(cancelled)

        waveform = self._from_numpy(samples.copy())[None]  # torch wants a writable array

        def run(most: int) -> Any:
            pipeline = self._pipeline
            sizes = [min(size, most) for size in self._batch_sizes]
            pipeline.segmentation_batch_size, pipeline.embedding_batch_size = sizes
            return pipeline(
                {"waveform": waveform, "sample_rate": SAMPLE_RATE},
                num_speakers=options.num_speakers,
                min_speakers=options.min_speakers,
                max_speakers=options.max_speakers,
                hook=hook,
            )

        with hold_lock(self._lock, cancelled):
            try:
                output = in_smaller_batches(max(self._batch_sizes), run)
            except Cancelled:
                raise
            except Exception as error:
                raise EngineFailed(
                    f"pyannote.audio failed: {type(error).__name__}: {error}"
                ) from error
        duration = len(samples) / SAMPLE_RATE
        turns, exclusive = (
            turns_within(((t.start, t.end, label) for t, _, label in tracks), duration)
            for tracks in (
                output.speaker_diarization.itertracks(yield_label=True),
                output.exclusive_speaker_diarization.itertracks(yield_label=True),
            )
        )
        return label_by_appearance(turns, exclusive)
