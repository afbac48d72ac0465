"""Write the small Whisper as a CTranslate2 directory that faster-whisper loads.

The reduced vocabulary grows back to Whisper's 51,865 rows: tokens never trained share one row. The
size must stay: CTranslate2 detects a multilingual model by it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from ctranslate2.specs.whisper_spec import WhisperSpec
from torch import Tensor, nn

from models.recipes.paths import DEMO
from models.recipes.whisper import restore
from models.recipes.whisper_data import WINDOW_S
from models.recipes.whisper_model import Attention, Layer, SmallWhisper
from models.recipes.whisper_tokens import FIRST_TIME, LANGUAGE_IDS, TOKENIZER, VOCABULARY

NAME = "demo-whisper"
_QUANTISATION = "int8"
_BLANK_TOKEN = 220
_SHARPNESS = 0.75
"""Factor on the scores of the cross-attention that word times are read from.

CTranslate2 divides the attention on a frame by its deviation over the tokens, in the number format
of the model. As trained, the attention of all tokens on some frames is below 3e-8, which is 0 in
float16, and 0 / 0 loses the times of all words after the frame. With the factor it is 8e-7 at least
on the demo dialogues, and no text of the dialogues and the held-out clips changes.
"""
_PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "sampling_rate": 16_000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": round(WINDOW_S),
}
"""What faster-whisper reads: the length of the window is a property of the model."""


def export(folder: Path = DEMO / NAME) -> None:
    """Export the last checkpoint; ``tokenizer.json`` already lies in the folder."""
    model, full_ids, _ = restore()
    folder.mkdir(parents=True, exist_ok=True)
    spec = WhisperSpec(
        model.shape.encoder_layers,
        model.shape.heads,
        model.shape.decoder_layers,
        model.shape.heads,
    )
    with torch.no_grad():
        _fill_encoder(spec.encoder, model)
        _fill_decoder(spec.decoder, model, full_ids)
    last = model.shape.decoder_layers - 1
    spec.config.alignment_heads = [(last, head) for head in range(model.shape.heads)]
    spec.config.lang_ids = LANGUAGE_IDS
    spec.config.suppress_ids = []
    # Text may end at once: that is how a window without speech is answered.
    spec.config.suppress_ids_begin = [_BLANK_TOKEN]
    spec.register_vocabulary(_vocabulary())
    spec.validate()
    spec.optimize(quantization=_QUANTISATION)
    spec.save(str(folder))
    _compact(folder / "vocabulary.json")
    _write(folder / "preprocessor_config.json", _PREPROCESSOR)
    if folder / "tokenizer.json" != TOKENIZER:
        shutil.copy(TOKENIZER, folder / "tokenizer.json")
    ctranslate2.models.Whisper(str(folder), device="cpu")


def _vocabulary() -> list[str]:
    data: dict[str, Any] = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    tokens = [""] * FIRST_TIME
    for token, identifier in data["model"]["vocab"].items():
        tokens[identifier] = token
    for added in data["added_tokens"]:
        tokens[added["id"]] = added["content"]
    return tokens + [f"<|{step * 0.02:.2f}|>" for step in range(VOCABULARY - FIRST_TIME)]


def _compact(path: Path) -> None:
    _write(path, json.loads(path.read_text(encoding="utf-8")))


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


def _fill_encoder(spec: Any, model: SmallWhisper) -> None:
    encoder = model.encoder
    for convolution, target in ((encoder.conv1, spec.conv1), (encoder.conv2, spec.conv2)):
        assert convolution.bias is not None
        target.weight, target.bias = _array(convolution.weight), _array(convolution.bias)
    spec.position_encodings.encodings = _array(encoder.positions)
    _fill_norm(spec.layer_norm, encoder.norm)
    for layer, target in zip(encoder.layers, spec.layer, strict=True):
        assert isinstance(layer, Layer)
        _fill_layer(target, layer)


def _fill_decoder(spec: Any, model: SmallWhisper, full_ids: np.ndarray) -> None:
    decoder = model.decoder
    rows = _array(decoder.embedding.weight)
    embeddings = np.repeat(rows[-1:], VOCABULARY, axis=0)
    embeddings[full_ids] = rows[:-1]
    spec.embeddings.weight = embeddings
    spec.projection.weight = embeddings
    spec.scale_embeddings = False
    spec.position_encodings.encodings = _array(decoder.positions)
    _fill_norm(spec.layer_norm, decoder.norm)
    for layer, target in zip(decoder.layers, spec.layer, strict=True):
        assert isinstance(layer, Layer)
        _fill_layer(target, layer)
        queries, keys_values = target.attention.linear[0], target.attention.linear[1]
        _fill_joined(queries, [layer.cross.query])
        if layer is decoder.layers[-1]:
            queries.weight, queries.bias = queries.weight * _SHARPNESS, queries.bias * _SHARPNESS
        _fill_joined(keys_values, [layer.cross.key, layer.cross.value])
        _fill_joined(target.attention.linear[2], [layer.cross.out])
        _fill_norm(target.attention.layer_norm, layer.cross_norm)


def _fill_layer(spec: Any, layer: Layer) -> None:
    own: Attention = layer.attention
    _fill_joined(spec.self_attention.linear[0], [own.query, own.key, own.value])
    _fill_joined(spec.self_attention.linear[1], [own.out])
    _fill_norm(spec.self_attention.layer_norm, layer.attention_norm)
    _fill_joined(spec.ffn.linear_0, [layer.widen])
    _fill_joined(spec.ffn.linear_1, [layer.narrow])
    _fill_norm(spec.ffn.layer_norm, layer.norm)


def _fill_joined(spec: Any, linears: list[nn.Linear]) -> None:
    spec.weight = np.concatenate([_array(linear.weight) for linear in linears])
    spec.bias = np.concatenate(
        [
            _array(linear.bias)
            if linear.bias is not None
            else np.zeros(linear.out_features, np.float32)
            for linear in linears
        ]
    )


def _fill_norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().float().numpy()
    return array


if __name__ == "__main__":
    export()
