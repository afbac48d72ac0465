"""Log-mel features in torch; imported only where the encoder runs in torch on a GPU."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.whisper.log_mel import BlockwiseFeatures
from speech.audio import Samples

_STEP = 500
"""Frames are transformed in multiples of it: cuFFT keeps a plan for each number of them."""


class TorchFeatures(BlockwiseFeatures):
    """The library's log-mel features within 1e-4, a block at a time on a device of torch."""

    def __init__(self, device: str, **options: Any) -> None:
        super().__init__(**options)
        self._filters = torch.from_numpy(self.mel_filters).to(device)
        hann = np.hanning(self.n_fft + 1)[:-1].astype(np.float32)
        self._hann = torch.from_numpy(hann).to(device)

    def _log_mel(self, samples: Samples) -> NDArray[np.float32]:
        count = 1 + (len(samples) - self.n_fft) // self.hop_length
        padding = -count % _STEP * self.hop_length
        with torch.inference_mode():
            values = torch.from_numpy(np.pad(samples, (0, padding))).to(self._hann.device)
            frames = values.unfold(0, self.n_fft, self.hop_length) * self._hann
            power = torch.fft.rfft(frames)[:count].abs().square()
            mel = (self._filters @ power.T).clamp_(min=1e-10).log10_()
            found: NDArray[np.float32] = mel.cpu().numpy()
        return found
