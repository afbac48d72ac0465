"""Whisper's architecture at a small size, with what training from scratch needs beside it.

The encoder also names phonemes and tokens frame by frame, and the last cross-attention can be seen
and guided. Names of the parameters are plain; ``whisper_export`` maps them to CTranslate2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes; 51,865 rows of ``width`` make most of the shipped file."""

    width: int = 128
    heads: int = 2
    hidden: int = 512
    encoder_layers: int = 4
    decoder_layers: int = 2
    phoneme_layer: int = 2
    frames: int = 1500
    positions: int = 448


class Attention(nn.Module):
    """Multi-head attention as in Whisper: the keys have no bias."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width, bias=False)
        self.value = nn.Linear(shape.width, shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def _split(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (self.heads, -1))
        return split.transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, causal: bool = False) -> Tensor:
        return self.seen(x, memory, causal)[0]

    def seen(self, x: Tensor, memory: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
        """As ``forward``, and the attention weights [B, heads, queries, keys].

        Written out: on processors this is faster both ways than the fused attention.
        """
        query, key = self._split(self.query(x)), self._split(self.key(memory))
        scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
        if causal:
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        weights = scores.softmax(-1, dtype=query.dtype)
        mixed = weights @ self._split(self.value(memory))
        return self.out(mixed.transpose(1, 2).flatten(2)), weights


class Layer(nn.Module):
    """A pre-norm transformer layer; decoder layers also look at the encoder."""

    def __init__(self, shape: Shape, crossed: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        if crossed:
            self.cross_norm = nn.LayerNorm(shape.width)
            self.cross = Attention(shape)
        self.norm = nn.LayerNorm(shape.width)
        self.widen = nn.Linear(shape.width, shape.hidden)
        self.narrow = nn.Linear(shape.hidden, shape.width)

    def attend(self, x: Tensor, causal: bool) -> Tensor:
        y = self.attention_norm(x)
        seen: Tensor = self.attention(y, y, causal)
        return x + seen

    def feed(self, x: Tensor) -> Tensor:
        fed: Tensor = self.narrow(functional.gelu(self.widen(self.norm(x))))
        return x + fed


class Encoder(nn.Module):
    """Two convolutions, fixed sinusoidal positions, layers."""

    positions: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.phoneme_layer = shape.phoneme_layer
        self.conv1 = nn.Conv1d(80, shape.width, 3, padding=1)
        self.conv2 = nn.Conv1d(shape.width, shape.width, 3, stride=2, padding=1)
        self.register_buffer("positions", sinusoids(shape.frames, shape.width))
        self.layers = nn.ModuleList(Layer(shape, False) for _ in range(shape.encoder_layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, mels: Tensor) -> tuple[Tensor, Tensor]:
        """Output and the state after the phoneme layer of features [B, T, 80]."""
        x = functional.gelu(self.conv1(mels.transpose(1, 2)))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        middle = x
        for number, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, Layer)
            x = layer.feed(layer.attend(x, causal=False))
            if number == self.phoneme_layer:
                middle = x
        return self.norm(x), middle


class Decoder(nn.Module):
    """Token embeddings tied to the output, learnt positions, layers that look at the encoder."""

    def __init__(self, vocabulary: int, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Parameter(torch.zeros(shape.positions, shape.width))
        self.layers = nn.ModuleList(Layer(shape, True) for _ in range(shape.decoder_layers))
        self.norm = nn.LayerNorm(shape.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the next token, and the last layer's cross-attention."""
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        weights = x
        for number, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, Layer)
            x = layer.attend(x, causal=True)
            if number < len(self.layers):
                x = x + layer.cross(layer.cross_norm(x), memory)
            else:
                change, weights = layer.cross.seen(layer.cross_norm(x), memory)
                x = x + change
            x = layer.feed(x)
        return functional.linear(self.norm(x), self.embedding.weight), weights


class SmallWhisper(nn.Module):
    """Encoder, decoder and the two frame-level heads that only training uses."""

    def __init__(self, vocabulary: int, phonemes: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.decoder = Decoder(vocabulary, shape)
        self.phoneme_head = nn.Linear(shape.width, phonemes)
        self.token_head = nn.Linear(shape.width, vocabulary)


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's encoder positions."""
    scales = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * scales[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
