"""Emotion classification with GigaAM-Emo on ONNX Runtime, without torch.

The model averages over all frames of its input, padding included, so a batch holds only windows of
exactly equal length: the result of a clip does not depend on its batch.
"""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.cancellation import CancelCheck, raise_if_cancelled
from engines.device import Device
from engines.onnx_sessions import check_providers, providers, session_options
from engines.out_of_memory import in_parts_that_fit
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, ModelUnavailable

logger = logging.getLogger(f"speechgraph.{__name__}")

LABELS = ("angry", "sad", "neutral", "positive")
"""Outputs of GigaAM-Emo in their order; ``labels.json`` of a model overrides it."""

WINDOW_S = 15.0
"""Longest input of the model; longer clips are cut into windows of this length."""
SHORTEST_S = 0.3
"""Shorter clips are padded with silence on both sides; the features need 0.0126 s."""

_FFT = 400
_HOP = 160
_MELS = 64
_FLOOR, _CEILING = 1e-9, 1e9
_WINDOW = round(WINDOW_S * SAMPLE_RATE)
_SHORTEST = round(SHORTEST_S * SAMPLE_RATE)
_FRAMES_PER_BATCH = 12_000
"""Two minutes of audio: bounds the memory of one inference."""


def log_mel(samples: Samples) -> NDArray[np.float32]:
    """Features of GigaAM, [64, samples // 160 + 1] of float32 [samples > 200] at 16 kHz.

    The natural logarithm of torchaudio's ``MelSpectrogram(16000, n_fft=400, hop_length=160,
    n_mels=64)``: periodic Hann window, reflecting centre padding, power 2, HTK mel scale without
    normalisation; clamped to 1e-9…1e9.
    """
    padded = np.pad(samples, _FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    with np.errstate(over="ignore", invalid="ignore"):
        spectrum = np.fft.rfft(frames * _hann(), axis=1)
        mel = (spectrum.real**2 + spectrum.imag**2) @ _mel_filters()
    # fmax and fmin, unlike clip, also turn a NaN of broken input into a bound.
    features: NDArray[np.float32] = np.log(np.fmin(np.fmax(mel, _FLOOR), _CEILING))
    return features.T


@cache
def _hann() -> NDArray[np.float32]:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)).astype(np.float32)


@cache
def _mel_filters() -> NDArray[np.float32]:
    """Triangular filters on the HTK mel scale from 0 Hz to Nyquist, [201, 64]."""
    hertz = np.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1)
    top_mel = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top_mel, _MELS + 2) / 2595) - 1)
    widths = np.diff(corners)
    rising = (hertz[:, None] - corners[:-2]) / widths[:-1]
    falling = (corners[2:] - hertz[:, None]) / widths[1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Window:
    """A part of one clip; ``weight`` counts the samples that no earlier window covers."""

    clip: int
    start: int
    end: int
    weight: int

    @property
    def frames(self) -> int:
        return max(self.end - self.start, _SHORTEST) // _HOP + 1


class EmotionEngine:
    """One loaded model; :meth:`classify` may run in several threads at once."""

    def __init__(self, path: Path, *, device: Device, threads: int) -> None:
        """Load ``model.onnx`` (``features``, ``feature_lengths`` → ``probs``) from a directory.

        ``device`` is "cpu" or "cuda"; ``threads`` is per inference. Raises ModelUnavailable, also
        where onnxruntime would take the CPU for a GPU that does not work.
        """
        try:
            self._session = onnxruntime.InferenceSession(
                str(path / "model.onnx"),
                session_options(threads),
                providers=providers(device),
                enable_fallback=0,
            )
            self.labels = _labels(path)
        except Exception as error:
            raise ModelUnavailable(
                "the emotion model does not load", detail=f"{path}: {error}"
            ) from error
        check_providers("the emotion model", device, [self._session])

    @property
    def compute_type(self) -> str:
        """The number format of its inputs; of the weights it depends on the file."""
        return "float32"

    def warm_up(self) -> None:
        """Classify a second of silence. Raises EngineFailed."""
        self.classify([np.zeros(SAMPLE_RATE, np.float32)])

    def classify(
        self, clips: Sequence[Samples], cancelled: CancelCheck = lambda: False
    ) -> list[dict[str, float]]:
        """Label to probability for each clip, float32 [samples] at 16 kHz of any length.

        A clip longer than WINDOW_S is cut into windows of that length, the last one aligned to
        its end, and their probabilities are averaged, weighted by the samples that each adds. One
        shorter than SHORTEST_S is padded with silence. An empty one gets equal probabilities.
        ``cancelled`` is polled before each batch; one that is too large for the memory is split.
        Raises Cancelled, EngineFailed.
        """
        totals = np.zeros((len(clips), len(self.labels)))
        for batch in _batches(clips):
            raise_if_cancelled(cancelled)
            features = np.stack([log_mel(_cut(clips[w.clip], w)) for w in batch])
            inferred = in_parts_that_fit(features, self._infer)
            for window, probabilities in zip(batch, inferred, strict=True):
                totals[window.clip] += window.weight * probabilities
        totals[[len(clip) == 0 for clip in clips]] = 1.0
        totals /= totals.sum(axis=1, keepdims=True)
        return [dict(zip(self.labels, row.tolist(), strict=True)) for row in totals]

    def _infer(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        lengths = np.full(len(features), features.shape[2], dtype=np.int64)
        inputs = {"features": features, "feature_lengths": lengths}
        try:
            (probabilities,) = self._session.run(["probs"], inputs)
        except Exception as error:
            raise EngineFailed(f"the emotion model failed: {error}") from error
        if probabilities.shape != (len(features), len(self.labels)):
            raise EngineFailed(f"the emotion model returned shape {probabilities.shape}")
        if not np.isfinite(probabilities).all():
            raise EngineFailed("the emotion model returned probabilities that are not finite")
        return np.asarray(probabilities, dtype=np.float32)


def _labels(path: Path) -> tuple[str, ...]:
    file = path / "labels.json"
    if not file.exists():
        return LABELS
    return tuple(json.loads(file.read_text(encoding="utf-8")))


def _batches(clips: Sequence[Samples]) -> list[list[_Window]]:
    """Batches of windows with equal numbers of frames, each of bounded size."""
    by_frames: dict[int, list[_Window]] = defaultdict(list)
    for index, clip in enumerate(clips):
        for window in _windows(index, len(clip)):
            by_frames[window.frames].append(window)
    batches = []
    for frames, windows in by_frames.items():
        size = max(1, _FRAMES_PER_BATCH // frames)
        batches += [windows[at : at + size] for at in range(0, len(windows), size)]
    return batches


def _windows(clip: int, length: int) -> list[_Window]:
    if length == 0:
        return []
    if length <= _WINDOW:
        return [_Window(clip, 0, length, length)]
    whole = math.ceil(length / _WINDOW) - 1
    covered = whole * _WINDOW
    return [
        *(_Window(clip, at, at + _WINDOW, _WINDOW) for at in range(0, covered, _WINDOW)),
        _Window(clip, length - _WINDOW, length, length - covered),
    ]


def _cut(clip: Samples, window: _Window) -> Samples:
    samples = clip[window.start : window.end]
    missing = _SHORTEST - len(samples)
    if missing <= 0:
        return samples
    return np.pad(samples, (missing // 2, missing - missing // 2))
