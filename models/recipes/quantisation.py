"""Eight-bit weights inside a float checkpoint: the scales move into what follows each weight.

Loading copies an int8 tensor into a float parameter as it is. A TDNN layer is convolution, leaky
ReLU, batch norm: a positive factor on the convolution passes the ReLU and is undone by the batch
norm. The last layer reads mean and deviation of each channel, so its scales go into the channels.
"""

import torch
from pyannote.audio.models.embedding import XVectorMFCC
from torch import Tensor, nn

_LEVELS = 127.0
_LAYERS_PER_BLOCK = 3


def eight_bit_xvector(net: XVectorMFCC) -> dict[str, Tensor]:
    """The state of an equivalent x-vector whose large weights are int8."""
    state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    for first in range(0, len(net.tdnns), _LAYERS_PER_BLOCK):
        norm = net.tdnns[first + 2]
        assert isinstance(norm, nn.BatchNorm1d)
        _fold_block(state, f"tdnns.{first}", f"tdnns.{first + 2}", norm.eps)
    _fold_last(state, f"tdnns.{len(net.tdnns) - 1}")
    return state


def _fold_block(state: dict[str, Tensor], convolution: str, norm: str, eps: float) -> None:
    weight = state[f"{convolution}.weight"]
    scale = weight.abs().amax((1, 2)).clamp(min=1e-8) / _LEVELS
    state[f"{convolution}.weight"] = (weight / scale[:, None, None]).round().to(torch.int8)
    state[f"{convolution}.bias"] /= scale
    deviation = (state[f"{norm}.running_var"] + eps).sqrt()
    state[f"{norm}.running_mean"] /= scale
    state[f"{norm}.running_var"] = torch.full_like(deviation, 1.0 - eps)
    state[f"{norm}.weight"] *= scale / deviation


def _fold_last(state: dict[str, Tensor], norm: str) -> None:
    weight = state["embedding.weight"]
    pooled = weight.reshape(len(weight), 2, -1)
    scale = pooled.abs().amax((0, 1)).clamp(min=1e-8) / _LEVELS
    state["embedding.weight"] = (pooled / scale).round().to(torch.int8).reshape(weight.shape)
    state[f"{norm}.weight"] *= scale
    state[f"{norm}.bias"] *= scale
