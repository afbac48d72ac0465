"""Diarization with sherpa-onnx, the light backend without torch.

sherpa-onnx 2.0 holds the interpreter's lock while it processes a file, minutes for an hour of
audio, and cannot be interrupted. So it runs in a process of its own: the replica keeps answering
health checks, and cancellation kills that process.
"""

import importlib.util
import multiprocessing
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from engines.cancellation import CancelCheck, hold_lock, raise_if_cancelled
from engines.diarization.diarize_options import check_speaker_counts
from engines.diarization.speaker_turns import exclusive_turns, label_by_appearance, turns_within
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, ModelNotInstalled, ModelUnavailable
from speech.ports import DiarizeOptions
from speech.transcript import Diarization, Turn

_FILES = ("segmentation.onnx", "embedding.onnx")
_LOAD_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0
_SHORTEST_S = 1.0
"""Shorter audio is padded to this length: the embedding needs some frames."""


class SherpaDiarizationEngine:
    """pyannote segmentation and a speaker embedding as ONNX models; see DiarizationEngine."""

    def __init__(self, path: Path, *, device: str, threads: int, threshold: float = 0.5) -> None:
        """Load ``segmentation.onnx`` and ``embedding.onnx`` from a directory.

        ``device`` "cuda" needs sherpa-onnx's CUDA build. ``threshold`` is the cosine distance at
        which the clustering stops merging; a good value depends on the embedding. Raises
        ModelNotInstalled, ModelUnavailable.
        """
        if importlib.util.find_spec("sherpa_onnx") is None:
            raise ModelNotInstalled(
                "sherpa-onnx is not installed on this server; its operator installs "
                "speechgraph[diarization-light]"
            )
        missing = [name for name in _FILES if not (path / name).is_file()]
        if missing:
            lacking = f"{path} holds no {' and no '.join(missing)}"
            raise ModelNotInstalled("files of the diarization model are missing", lacking)
        self._arguments = (path, device, threads, threshold)
        self._lock = threading.Lock()
        self._worker = _Worker(*self._arguments)
        self.compute_type = "float32"

    def warm_up(self) -> None:
        """Process a second of noise. Raises EngineFailed."""
        noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
        self._turns(noise, 1, lambda: False)

    def diarize(
        self, samples: Samples, options: DiarizeOptions, cancelled: CancelCheck = lambda: False
    ) -> Diarization:
        """See :class:`engines.diarization.backends.DiarizationEngine`.

        Without ``num_speakers`` the clustering estimates it; an estimate outside of
        ``min_speakers`` to ``max_speakers`` is replaced by the nearer bound in a second pass.
        """
        check_speaker_counts(options)
        if not samples.any():  # empty, or digital silence
            return Diarization((), ())
        with hold_lock(self._lock, cancelled):
            turns = self._turns(samples, options.num_speakers, cancelled)
            found = len({turn.speaker for turn in turns})
            bound = min(max(found, options.min_speakers or 1), options.max_speakers or found)
            if found and bound != found and options.num_speakers is None:
                turns = self._turns(samples, bound, cancelled)
        return label_by_appearance(turns, exclusive_turns(turns))

    def _turns(self, samples: Samples, speakers: int | None, cancelled: CancelCheck) -> list[Turn]:
        if not self._worker.is_alive():
            self._worker = _Worker(*self._arguments)
        padded = np.pad(samples, (0, max(0, round(_SHORTEST_S * SAMPLE_RATE) - len(samples))))
        segments = self._worker.process(padded, speakers, cancelled)
        return turns_within(segments, len(samples) / SAMPLE_RATE)


class _Worker:
    """The process that runs the models; it exits when the pipe of this object closes."""

    def __init__(self, path: Path, device: str, threads: int, threshold: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, path, device, threads, threshold), daemon=True
        )
        self._process.start()
        theirs.close()
        failure = "its process does not start"
        if self._pipe.poll(_LOAD_TIMEOUT_S):
            try:
                failure = self._pipe.recv()
            except EOFError:
                failure = "its process died while loading"
        if failure:
            self._stop()
            raise ModelUnavailable(
                "the diarization model does not load", detail=f"{path}: {failure}"
            )

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def _stop(self) -> None:
        self._process.kill()
        self._process.join(_STOP_TIMEOUT_S)

    def process(
        self, samples: Samples, speakers: int | None, cancelled: CancelCheck
    ) -> list[tuple[float, float, str]]:
        """(start, end, speaker) of the turns. Raises Cancelled, EngineFailed."""
        try:
            self._pipe.send(speakers)
            self._pipe.send_bytes(samples.data)
            while not self._pipe.poll(0.1):
                raise_if_cancelled(cancelled)
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._stop()
            raise EngineFailed(
                "the process of sherpa-onnx died while processing this audio"
            ) from error
        except BaseException:
            self._stop()
            raise
        if isinstance(answer, str):
            raise EngineFailed(f"sherpa-onnx failed: {answer}")
        return list(answer)


def _serve(pipe: Connection, path: Path, device: str, threads: int, threshold: float) -> None:
    """Body of the process: receives numbers of speakers and audio, sends segments, until EOF."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process stops this one
    try:
        config = _configuration(path, device, threads, threshold)
        diarization = _library().OfflineSpeakerDiarization(config)
    except Exception as error:
        pipe.send(str(error) or type(error).__name__)
        return
    pipe.send("")
    while True:
        try:
            speakers = pipe.recv()
            samples = np.frombuffer(pipe.recv_bytes(), np.float32)
        except EOFError:
            return
        try:
            config.clustering.num_clusters = speakers or -1
            diarization.set_config(config)
            segments = diarization.process(samples).sort_by_start_time()
            pipe.send([(s.start, s.end, str(s.speaker)) for s in segments])
        except Exception as error:
            pipe.send(str(error) or type(error).__name__)


def _library() -> Any:
    import sherpa_onnx

    return sherpa_onnx


def _configuration(path: Path, device: str, threads: int, threshold: float) -> Any:
    sherpa_onnx = _library()
    segmentation, embedding = (str(path / name) for name in _FILES)
    runtime = {"num_threads": threads, "provider": device}
    return sherpa_onnx.OfflineSpeakerDiarizationConfig(
        segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(
            pyannote=sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(model=segmentation),
            **runtime,
        ),
        embedding=sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=embedding, **runtime),
        clustering=sherpa_onnx.FastClusteringConfig(threshold=threshold),
    )
