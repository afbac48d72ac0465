"""The encoder of Whisper in torch, with the weights of a CTranslate2 model.

Imported only where it is used: a node without torch serves Whisper with the encoder of CTranslate2,
which takes four times as long on a recent GPU.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines.whisper.model_bin import ModelBin

_TYPES = (
    torch.float32,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.float16,
    torch.bfloat16,
)
"""In the order of their ids in the file."""
_WINDOWS = 16
"""Encoded at once, at most. More are not faster, and each takes 40 MB in a model of width 1280."""


class TorchEncoder:
    """Convolutions, then blocks of attention and feed-forward network; threads may share it.

    ``compute_type`` is one of CTranslate2. The encoder computes in its floating-point type: float16
    for int8_float16, float32 for int8.
    """

    def __init__(self, model: ModelBin, *, device: str, compute_type: str) -> None:
        """Copy the weights to the device, "cpu" or "cuda". Raises KeyError if one is missing."""
        self._device = torch.device(device)
        name = compute_type.removeprefix("int8_")
        self._dtype: torch.dtype = {
            "float16": torch.float16,
            "bfloat16": torch.bfloat16,
        }.get(name, torch.float32)
        self._weights = {
            name: self._load(model, name)
            for name in model.encoder_names()
            if not name.endswith(("_scale", "/num_heads"))
        }
        self._heads = int(_stored(model, "encoder/num_heads"))
        self._layers = sum(name.endswith("/ffn/linear_0/weight") for name in self._weights)

    def encode(self, features: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
        """The output [B, frames / 2, width] of log-mel features [B, mels, frames], complete.

        It is contiguous, in float16 if the encoder computes in it, else in float32: the two types
        that CTranslate2 takes from an array.
        """
        with torch.inference_mode():
            batch = torch.from_numpy(features).to(self._device)
            parts = [self._encode(part.to(self._dtype)) for part in batch.split(_WINDOWS)]
            output = parts[0] if len(parts) == 1 else torch.cat(parts)
            if self._device.type == "cuda":
                # CTranslate2 reads it on a stream of its own, which waits for no other.
                torch.cuda.current_stream(self._device).synchronize()
        return output

    def _encode(self, features: Tensor) -> Tensor:
        hidden = functional.gelu(self._convolve(features, "conv1", stride=1))
        hidden = functional.gelu(self._convolve(hidden, "conv2", stride=2)).transpose(1, 2)
        positions = self._weights["encoder/position_encodings/encodings"]
        # The sum of a transposed tensor would keep its layout through all blocks.
        hidden = (hidden + positions[: hidden.shape[1]]).contiguous()
        for layer in range(self._layers):
            scope = f"layer_{layer}"
            hidden = hidden + self._attend(hidden, f"{scope}/self_attention")
            normal = self._normalise(hidden, f"{scope}/ffn/layer_norm")
            inner = functional.gelu(self._project(normal, f"{scope}/ffn/linear_0"))
            hidden = hidden + self._project(inner, f"{scope}/ffn/linear_1")
        output = self._normalise(hidden, "layer_norm")
        return output if output.dtype == torch.float16 else output.float()

    def _attend(self, hidden: Tensor, scope: str) -> Tensor:
        batch, frames, width = hidden.shape
        joint = self._project(self._normalise(hidden, f"{scope}/layer_norm"), f"{scope}/linear_0")
        heads = joint.view(batch, frames, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads)
        return self._project(
            mixed.transpose(1, 2).reshape(batch, frames, width), f"{scope}/linear_1"
        )

    def _convolve(self, values: Tensor, scope: str, *, stride: int) -> Tensor:
        weight, bias = self._weight_and_bias(scope)
        return functional.conv1d(values, weight, bias, stride, padding=1)

    def _project(self, values: Tensor, scope: str) -> Tensor:
        return functional.linear(values, *self._weight_and_bias(scope))

    def _normalise(self, values: Tensor, scope: str) -> Tensor:
        gamma = self._weights[f"encoder/{scope}/gamma"]
        beta = self._weights[f"encoder/{scope}/beta"]
        return functional.layer_norm(values, gamma.shape, gamma, beta)

    def _weight_and_bias(self, scope: str) -> tuple[Tensor, Tensor | None]:
        weights = self._weights
        return weights[f"encoder/{scope}/weight"], weights.get(f"encoder/{scope}/bias")

    def _load(self, model: ModelBin, name: str) -> Tensor:
        values = _stored(model, name).to(self._device)
        if f"{name}_scale" in model:  # quantised, with a scale for all or for each row
            scale = _stored(model, f"{name}_scale").to(self._device)
            values = values.float() / scale.reshape(-1, *[1] * (values.dim() - 1))
        return values.to(self._dtype)


def _stored(model: ModelBin, name: str) -> Tensor:
    variable = model[name]
    data = np.array(variable.data)  # torch takes no memory that is read-only
    return torch.from_numpy(data).view(_TYPES[variable.dtype]).reshape(variable.shape)
