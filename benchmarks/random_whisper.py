"""Whisper models of a true size with random weights, for measurements: they need no download.

They decode as many tokens as they may in every window: neither the end of the text nor a time is
ever the best token. What faster-whisper reads beside the weights is that of demo-whisper.
"""

import json
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.common_spec import Conv1DSpec, LayerNormSpec, LinearSpec
from ctranslate2.specs.transformer_spec import FeedForwardSpec
from ctranslate2.specs.whisper_spec import WhisperSpec
from numpy.typing import NDArray

DEMO = Path(__file__).parents[1] / "models" / "demo" / "demo-whisper"

_END_OF_TEXT = 50257
_POOL = 1 << 25


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a Whisper model; ``window_s`` is the length of its window in seconds."""

    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    mels: int = 128
    vocabulary: int = 51_866
    window_s: int = 30


TURBO = Shape(1280, 20, 32, 4)
LARGE_V3 = Shape(1280, 20, 32, 32)


def build(folder: Path, shape: Shape, quantisation: str = "float16") -> Path:
    """Write a model to ``folder``, unless it is there; return the folder.

    ``quantisation`` is the format of the weights in the file, one of ctranslate2. A model of the
    size of turbo takes 1.6 GB in float16, one of large-v3 3.1 GB.
    """
    if (folder / "config.json").is_file():  # it is written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    spec = WhisperSpec(shape.encoder_layers, shape.heads, shape.decoder_layers, shape.heads)
    _Weights(spec, shape)
    config = json.loads((DEMO / "config.json").read_text("utf-8"))
    spec.config.lang_ids = config["lang_ids"]
    spec.config.suppress_ids = config["suppress_ids"]
    spec.config.suppress_ids_begin = config["suppress_ids_begin"]
    spec.config.alignment_heads = [(shape.decoder_layers - 1, 0)]
    tokens = json.loads((DEMO / "vocabulary.json").read_text("utf-8"))
    spec.register_vocabulary(
        [*tokens, *(f"<|{n}|>" for n in range(shape.vocabulary - len(tokens)))]
    )
    spec.validate()
    spec.optimize(quantization=quantisation)
    extractor = json.loads((DEMO / "preprocessor_config.json").read_text("utf-8"))
    extractor |= {"feature_size": shape.mels, "chunk_length": shape.window_s}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor), "utf-8")
    shutil.copyfile(DEMO / "tokenizer.json", folder / "tokenizer.json")
    spec.save(str(folder))
    return folder


class _Weights:
    """Fills a specification: weights from one pool of random numbers, each from another place."""

    def __init__(self, spec: WhisperSpec, shape: Shape) -> None:
        self._rng = np.random.default_rng(5)
        self._pool = self._rng.standard_normal(_POOL, np.float32) * np.float32(shape.width**-0.5)
        self._width = width = shape.width
        encoder, decoder = spec.encoder, spec.decoder
        self._convolution(encoder.conv1, shape.mels)
        self._convolution(encoder.conv2, width)
        encoder.position_encodings.encodings = self._random(50 * shape.window_s, width)
        decoder.position_encodings.encodings = self._random(448, width)
        embeddings = self._random(shape.vocabulary, width)
        # Their products with the ones of the last norm are the lowest: text alone is decoded.
        embeddings[_END_OF_TEXT:] = -1.0
        decoder.embeddings.weight = decoder.projection.weight = embeddings
        for layer in (*encoder.layer, *decoder.layer):
            self._attention(layer.self_attention)
            self._feed_forward(layer.ffn)
        for layer in decoder.layer:
            self._attention(layer.attention)
        self._norm(encoder.layer_norm)
        self._norm(decoder.layer_norm)
        decoder.layer_norm.beta += 1.0

    def _random(self, *shape: int) -> NDArray[np.float32]:
        first = int(self._rng.integers(_POOL // 2))
        return np.resize(self._pool[first : first + prod(shape)], shape)

    def _attention(self, spec: MultiHeadAttentionSpec) -> None:
        self._norm(spec.layer_norm)
        fused = {2: (3, 1), 3: (1, 2, 1)}[len(spec.linear)]  # one input of self-attention, or two
        for linear, count in zip(spec.linear, fused, strict=True):
            self._linear(linear, count * self._width, self._width)

    def _feed_forward(self, spec: FeedForwardSpec) -> None:
        self._norm(spec.layer_norm)
        self._linear(spec.linear_0, 4 * self._width, self._width)
        self._linear(spec.linear_1, self._width, 4 * self._width)

    def _linear(self, spec: LinearSpec, outputs: int, inputs: int) -> None:
        spec.weight = self._random(outputs, inputs)
        spec.bias = np.zeros(outputs, np.float32)

    def _convolution(self, spec: Conv1DSpec, inputs: int) -> None:
        spec.weight = self._random(self._width, inputs, 3)
        spec.bias = np.zeros(self._width, np.float32)

    def _norm(self, spec: LayerNormSpec) -> None:
        spec.gamma = np.ones(self._width, np.float32)
        spec.beta = np.zeros(self._width, np.float32)
