"""Diarization by voice: the interface of the backends, and the backend of a catalogue entry."""

from pathlib import Path
from typing import Protocol

from configs.catalogue import ModelEntry
from engines.cancellation import CancelCheck
from engines.device import WarmEngine
from engines.diarization.pyannote_diarization import PyannoteEngine
from engines.diarization.sherpa_diarization import SherpaDiarizationEngine
from engines.gpu_libraries import Backend
from speech.audio import Samples
from speech.ports import DiarizeOptions
from speech.transcript import Diarization


class DiarizationEngine(WarmEngine, Protocol):
    """A loaded backend; calls from several threads run one after the other."""

    def diarize(
        self, samples: Samples, options: DiarizeOptions, cancelled: CancelCheck = ...
    ) -> Diarization:
        """Turns in float32 [samples] at 16 kHz, speakers SPEAKER_00… in order of appearance.

        Audio without speech gives no turns. ``cancelled`` is polled during inference and while
        waiting for another call. Raises InvalidRequest for impossible numbers of speakers,
        Cancelled, EngineFailed.
        """
        ...


def backend(entry: ModelEntry) -> Backend:
    """The library that runs a catalogue entry."""
    return "torch" if entry.format == "pyannote" else "sherpa_onnx"


def load_engine(entry: ModelEntry, path: Path, *, device: str, threads: int) -> DiarizationEngine:
    """The engine of a catalogue entry whose files are in ``path``. Raises ModelUnavailable."""
    engine = PyannoteEngine if entry.format == "pyannote" else SherpaDiarizationEngine
    return engine(path, device=device, threads=threads, **entry.options)
