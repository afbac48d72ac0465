"""The demo Whisper in float16: its architecture in torch, with the weights of the shipped file."""

import struct
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.whisper.engine import WhisperEngine
from models.recipes.whisper_model import Attention, Layer, Shape, SmallWhisper
from models.recipes.whisper_tokens import VOCABULARY
from speech.ports import TranscribeOptions
from tests.unit.heldout import load

WINDOW = 1000
START, END, TRANSCRIBE, NO_TIMES, LANGUAGES = 50258, 50257, 50359, 50363, {"ru": 50263, "en": 50259}
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "models" / "demo" / "demo-whisper"


@pytest.fixture(scope="module")
def engine(folder: Path) -> WhisperEngine:
    return WhisperEngine(folder, device="cpu", compute_type="float32", threads=1)


@pytest.fixture(scope="module")
def weights(folder: Path) -> Weights:
    return read(folder / "model.bin")


def read(path: Path) -> Weights:
    """The variables of a CTranslate2 file, those of int8 divided by their scales."""
    data, place = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal place
        place += struct.calcsize(kind)
        return int(struct.unpack_from(kind, data, place - struct.calcsize(kind))[0])

    def text() -> str:
        nonlocal place
        length = number("<H")
        place += length
        return data[place - length : place - 1].decode()

    arrays = {}
    assert (number("<I"), text(), number("<I")) == (6, "WhisperSpec", 3)
    for _ in range(number("<I")):
        name = text()
        shape = [number("<I") for _ in range(number("<B"))]
        kind, size = np.dtype(TYPES[number("<B")]), number("<I")
        array = np.frombuffer(data, kind, size // kind.itemsize, place).reshape(shape)
        arrays[name] = torch.from_numpy(array.astype(np.float32))
        place += size
    for name in [name for name in arrays if name.endswith("_scale")]:
        scaled = arrays[name.removesuffix("_scale")]
        scaled /= arrays[name].view(-1, *[1] * (scaled.ndim - 1))
    return arrays


def fill(module: nn.Module, weights: Weights, *names: str, rows: slice = slice(None)) -> None:
    for source, target in zip(names[1:], ("weight", "bias"), strict=True):
        parameter = getattr(module, target)
        if parameter is not None:
            parameter.copy_(weights[f"{names[0]}/{source}"][rows])


def fill_attention(attention: Attention, weights: Weights, scope: str, joined: list[int]) -> None:
    """``joined``: how many of query, key and value each linear layer of the file holds."""
    width, parts = attention.query.out_features, [attention.query, attention.key, attention.value]
    for index, count in enumerate(joined):
        for row in range(count):
            rows = slice(row * width, (row + 1) * width)
            fill(parts.pop(0), weights, f"{scope}/linear_{index}", "weight", "bias", rows=rows)
    fill(attention.out, weights, f"{scope}/linear_{len(joined)}", "weight", "bias")


def fill_layer(layer: Layer, weights: Weights, scope: str) -> None:
    norm = ("gamma", "beta")
    fill(layer.attention_norm, weights, f"{scope}/self_attention/layer_norm", *norm)
    fill_attention(layer.attention, weights, f"{scope}/self_attention", [3])
    if hasattr(layer, "cross"):
        fill(layer.cross_norm, weights, f"{scope}/attention/layer_norm", *norm)
        fill_attention(layer.cross, weights, f"{scope}/attention", [1, 2])
    fill(layer.norm, weights, f"{scope}/ffn/layer_norm", *norm)
    fill(layer.widen, weights, f"{scope}/ffn/linear_0", "weight", "bias")
    fill(layer.narrow, weights, f"{scope}/ffn/linear_1", "weight", "bias")


@torch.no_grad()
def network(weights: Weights) -> SmallWhisper:
    model = SmallWhisper(VOCABULARY, 1, Shape())
    encoder, decoder = model.encoder, model.decoder
    for name, convolution in (("conv1", encoder.conv1), ("conv2", encoder.conv2)):
        fill(convolution, weights, f"encoder/{name}", "weight", "bias")
    encoder.positions.copy_(weights["encoder/position_encodings/encodings"])
    decoder.embedding.weight.copy_(weights["decoder/embeddings/weight"])
    decoder.positions.copy_(weights["decoder/position_encodings/encodings"])
    for name, half in (("encoder", encoder), ("decoder", decoder)):
        fill(half.norm, weights, f"{name}/layer_norm", "gamma", "beta")
        for index, layer in enumerate(half.layers):
            assert isinstance(layer, Layer)
            fill_layer(layer, weights, f"{name}/layer_{index}")
    return model.eval()


@pytest.mark.parametrize("language", ["ru", "en"])
def test_it_is_finite_in_float16_on_the_demo_dialogues_with_times_for_all_words(
    engine: WhisperEngine, weights: Weights, demo_audio: Path, language: str
) -> None:
    samples = load(demo_audio / f"dialogue-{language}.flac")
    features = engine._model.feature_extractor(samples)
    found = engine.transcribe(samples, TranscribeOptions(language=language))
    assert len(found.segments) == 12
    full, half = network(weights), network(weights).half()
    largest = 0.0

    def note(module: nn.Module, given: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, float(output.abs().max()))

    for part in half.modules():
        part.register_forward_hook(note)
    for seek, segments in groupby(found.segments, lambda segment: segment.seek):
        text = [t for segment in segments for t in segment.tokens if t < END]
        tokens = torch.tensor([[START, LANGUAGES[language], TRANSCRIBE, NO_TIMES, *text, END]])
        window = features[:, seek : seek + WINDOW]
        speech = window.shape[1] // 2
        padded = np.pad(window, ((0, 0), (0, WINDOW - window.shape[1]))).T[None]
        mels = torch.from_numpy(padded)
        with torch.no_grad():
            encoded, _ = half.encoder(mels.half())
            logits, attention = half.decoder(tokens, encoded)
            expected, _ = full.decoder(tokens, full.encoder(mels)[0])
        assert torch.isfinite(encoded).all()
        assert torch.isfinite(logits).all()
        assert (logits.float() - expected).abs().max() < 0.5
        # CTranslate2 divides by the deviation over the tokens, in each head and frame.
        deviation = attention[0, :, :, :speech].float().var(dim=1, correction=0)
        assert deviation.min() > 0
    assert largest < 1000
