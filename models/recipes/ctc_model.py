"""The shared trunk of the CTC models: causal convolutions over 40 ms frames.

Frame ``t`` of the output speaks of frame ``t - DELAY_FRAMES`` of the input: the network itself is
causal, and the delay is its look-ahead of 160 ms. Exports drop the first outputs, so token times
are those of the audio.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.recipes.features import MELS, Frontend

STRIDE = 4
DELAY_FRAMES = 4
PHONEME_DELAY_FRAMES = 2


@dataclass(frozen=True)
class Shape:
    """Sizes of the trunk: about 2.7 million weights."""

    width: int = 256
    hidden: int = 512
    blocks: int = 9
    kernel: int = 9
    phoneme_block: int = 5


class Block(nn.Module):
    """Depthwise causal convolution over time, then a two-layer network at every frame."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(shape.width, shape.width, shape.kernel, groups=shape.width)
        self.norm = nn.LayerNorm(shape.width)
        self.widen = nn.Linear(shape.width, shape.hidden)
        self.narrow = nn.Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """``context`` holds the frames before ``x``; they come back joined, for the next cache."""
        joined = torch.cat([context.to(x.dtype), x], dim=1)
        y = self.convolution(joined.transpose(1, 2)).transpose(1, 2)
        return x + self.narrow(functional.relu(self.widen(self.norm(y)))), joined


class CtcTrunk(nn.Module):
    """Stems for both kinds of features, the blocks, the piece head and a phoneme head."""

    def __init__(self, pieces: int, phonemes: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.stems = nn.ModuleDict(
            {name: nn.Linear(2 * STRIDE * mels, shape.width) for name, mels in MELS.items()}
        )
        for name, mels in MELS.items():
            self.register_buffer(f"mean_{name}", torch.zeros(mels))
            self.register_buffer(f"scale_{name}", torch.ones(mels))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, pieces)
        self.phoneme_head = nn.Linear(shape.width, phonemes)

    def set_statistics(self, frontend: Frontend, mean: Tensor, deviation: Tensor) -> None:
        """Fix the normalisation: it is part of the graph, streaming has no other chance."""
        getattr(self, f"mean_{frontend}").copy_(mean)
        getattr(self, f"scale_{frontend}").copy_(1.0 / deviation.clamp_min(0.1))

    def normalise(self, features: Tensor, frontend: Frontend) -> Tensor:
        """Features [B, T, mels] on a common scale."""
        mean = getattr(self, f"mean_{frontend}")
        normal: Tensor = (features - mean) * getattr(self, f"scale_{frontend}")
        return normal

    def stem(self, joined: Tensor, frontend: Frontend) -> Tensor:
        """40 ms frames [B, T/4, width] of T normalised 10 ms frames preceded by 4 of context."""
        blocks = joined.reshape(joined.shape[0], -1, STRIDE * joined.shape[2])
        stemmed: Tensor = self.stems[frontend](torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=-1))
        return stemmed

    def forward(self, features: Tensor, frontend: Frontend) -> tuple[Tensor, Tensor]:
        """Piece logits and phoneme logits of whole utterances, T a multiple of four."""
        x = self.normalise(features, frontend)
        x = self.stem(functional.pad(x, (0, 0, STRIDE, 0)), frontend)
        context = x.new_zeros(x.shape[0], self.shape.kernel - 1, self.shape.width)
        phonemes = x
        for number, block in enumerate(self.blocks, start=1):
            x, _ = block(x, context)
            if number == self.shape.phoneme_block:
                phonemes = self.phoneme_head(x)
        return self.head(self.norm(x)), phonemes
