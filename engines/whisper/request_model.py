"""A view of a loaded Whisper model for one request."""

import copy
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray

from engines.cancellation import CancelCheck, raise_if_cancelled
from speech.audio import Samples
from speech.ports import TranscribeOptions

_ROOM_FOR_TEXT = 220
"""Tokens of a window kept free of context; half of Whisper's 448, less its control tokens."""
_FRAMES_PER_BLOCK = 6000


class RequestModel(WhisperModel):  # type: ignore[misc]  # the library has no types
    """A loaded model for one request: own feature extractor, bounded prompts, cancellation.

    The library stores ``chunk_length`` on the shared feature extractor, and lets context and hints
    grow beyond the positions of the model. The weights are shared.
    """

    def __init__(
        self, loaded: WhisperModel, options: TranscribeOptions, cancelled: CancelCheck
    ) -> None:
        self.__dict__.update(loaded.__dict__)
        self.feature_extractor = copy.copy(loaded.feature_extractor)
        self.feature_extractor.__class__ = _BlockwiseFeatures
        self._room_for_text = options.max_new_tokens or _ROOM_FOR_TEXT
        self._cancelled = cancelled
        self._window = loaded.feature_extractor.nb_max_frames

    def encode(self, features: NDArray[np.float32]) -> Any:
        """The encoder output of one window; the cancellation point of each window."""
        raise_if_cancelled(self._cancelled)
        # The library pads every window to 30 s, also for a model that was trained on less.
        return super().encode(features[..., : self._window])

    def get_prompt(self, tokenizer: Any, previous_tokens: list[int], **hints: Any) -> list[int]:
        """The prompt, with as much context as leaves room for the text of the window."""
        fixed = len(super().get_prompt(tokenizer, [], **hints)) + 1
        room = max(0, self.max_length - self._room_for_text - fixed)
        context = previous_tokens[-room:] if room else []
        prompt: list[int] = super().get_prompt(tokenizer, context, **hints)
        return prompt


class _BlockwiseFeatures(FeatureExtractor):  # type: ignore[misc]  # the library has no types
    """The library's log-mel features, bit for bit, in a sixth of the memory.

    The library itself takes 50 MiB for each minute of audio, 12 GB for four hours.
    """

    def __call__(
        self, waveform: Samples, padding: int = 160, chunk_length: int | None = None
    ) -> NDArray[np.float32]:
        if chunk_length is not None:
            self.n_samples = chunk_length * self.sampling_rate
            self.nb_max_frames = self.n_samples // self.hop_length
        padded = np.pad(np.pad(waveform, (0, padding)), self.n_fft // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)
        frames = windows[:: self.hop_length][:-1]
        hann = np.hanning(self.n_fft + 1)[:-1].astype(np.float32)
        mel = np.empty((len(self.mel_filters), len(frames)), np.float32)
        for start in range(0, len(frames), _FRAMES_PER_BLOCK):
            block = frames[start : start + _FRAMES_PER_BLOCK]
            power = np.abs(np.fft.rfft(block * hann).astype(np.complex64)) ** 2
            mel[:, start : start + len(block)] = self.mel_filters @ power.T
        np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)
        np.maximum(mel, mel.max(initial=-10.0) - 8.0, out=mel)
        mel += 4.0
        mel /= 4.0
        return mel
