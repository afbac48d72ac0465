"""Log-mel features in torch, equal to what the engines compute at run time.

``nemo`` is sherpa-onnx's frontend of NeMo CTC models, ``gigaam`` that of GigaAM models and
``whisper`` that of OpenAI's Whisper before its normalisation.
"""

from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Frontend = Literal["nemo", "gigaam"]

SAMPLE_RATE_HZ = 16_000
HOP = 160
MELS: dict[Frontend, int] = {"nemo": 80, "gigaam": 64}
_WINDOW, _FFT, _PREEMPHASIS = 400, 512, 0.97
_FLOOR = float(np.finfo(np.float32).eps)


def log_mel(samples: Tensor, frontend: Frontend) -> Tensor:
    """Features [B, T, mels] of equally long waveforms [B, N] in [-1, 1]."""
    count = (samples.shape[-1] + HOP // 2) // HOP
    left = (_WINDOW - HOP) // 2
    right = count * HOP + _WINDOW
    padded = torch.cat([samples[:, :left].flip(-1), samples, samples[:, -right:].flip(-1)], dim=-1)
    frames = padded.unfold(-1, _WINDOW, HOP)[:, :count]
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    emphasised = (frames - _PREEMPHASIS * before) * _hann()
    power = torch.fft.rfft(emphasised, n=_FFT).abs().square()
    energies: Tensor = power @ _filters(frontend)
    return energies.clamp_min(_FLOOR).log()


def whisper_log_mel(samples: Tensor) -> Tensor:
    """Whisper's log10 mel energies [B, T, 80], not yet normalised, one frame per 160 samples."""
    padded = functional.pad(samples[:, None], (200, 200), mode="reflect")[:, 0]
    frames = padded.unfold(-1, 400, HOP)[:, : samples.shape[-1] // HOP]
    power = torch.fft.rfft(frames * torch.hann_window(400)).abs().square()
    energies: Tensor = power @ _whisper_filters()
    return energies.clamp_min(1e-10).log10()


@cache
def _hann() -> Tensor:
    return torch.hann_window(_WINDOW, periodic=False)


@cache
def _filters(frontend: Frontend) -> Tensor:
    if frontend == "nemo":
        return torch.from_numpy(_slaney_filters(MELS["nemo"], _FFT))
    return torch.from_numpy(_kaldi_filters(MELS["gigaam"]))


@cache
def _whisper_filters() -> Tensor:
    return torch.from_numpy(_slaney_filters(80, 400))


def _slaney_filters(mels: int, fft: int) -> np.ndarray:
    """Area-normalised triangles on Slaney's mel scale, as librosa draws them: [fft/2+1, mels]."""
    top = 15.0 + np.log(SAMPLE_RATE_HZ / 2 / 1000.0) / (np.log(6.4) / 27.0)
    points = np.linspace(0.0, top, mels + 2)
    hertz = np.where(
        points < 15.0, points * 200.0 / 3.0, 1000.0 * np.exp((points - 15.0) * np.log(6.4) / 27.0)
    )
    bins = np.arange(fft // 2 + 1) * SAMPLE_RATE_HZ / fft
    weights = _triangles(bins, hertz) * (2.0 / (hertz[2:] - hertz[:-2]))
    return weights.astype(np.float32)


def _kaldi_filters(mels: int) -> np.ndarray:
    """Triangles that are straight on the mel scale itself, as Kaldi draws them."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return np.asarray(1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0))

    bins = mel(np.arange(_FFT // 2 + 1) * SAMPLE_RATE_HZ / _FFT)
    weights = _triangles(bins, np.linspace(0.0, float(mel(SAMPLE_RATE_HZ / 2)), mels + 2))
    weights[-1] = 0.0
    return weights.astype(np.float32)


def _triangles(bins: np.ndarray, points: np.ndarray) -> np.ndarray:
    low, centre, high = points[:-2], points[1:-1], points[2:]
    rising = (bins[:, None] - low) / (centre - low)
    falling = (high - bins[:, None]) / (high - centre)
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)))
