"""The encoder in torch gives what that of CTranslate2 gives, from the same files."""

import importlib.util
import logging
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray

from benchmarks.random_whisper import Shape, build
from engines.out_of_memory import is_out_of_memory
from engines.whisper.encoders import Asked, WhisperFiles
from engines.whisper.engine import WhisperEngine
from engines.whisper.model_bin import ModelBin, UnknownFormat, decoder_folder
from engines.whisper.torch_encoder import TorchEncoder
from engines.whisper.torch_features import TorchFeatures
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import ModelNotInstalled
from speech.ports import TranscribeOptions
from speech.transcript import Recognition
from tests.unit.heldout import load

FAST = TranscribeOptions(beam_size=1, temperature=(0.0,))
PROMPT = [50258, 50259, 50359]
TINY = Shape(64, 4, 3, 2, mels=128, window_s=10)


@pytest.fixture(scope="module")
def demo(repository: Path) -> Path:
    return repository / "models" / "demo" / "demo-whisper"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return build(tmp_path / "tiny", TINY)


def whole(folder: Path, compute_type: str = "float32") -> Any:
    return ctranslate2.models.Whisper(str(folder), device="cpu", compute_type=compute_type)


def split(folder: Path, compute_type: str = "float32") -> Any:
    files = WhisperFiles(folder, device="cpu", compute_type=compute_type, encoder="torch")
    with files.folder() as part:
        return files.with_encoder(whole(part, compute_type))


def features(windows: int, mels: int = 80, frames: int = 1000) -> NDArray[np.float32]:
    rng = np.random.default_rng(4)
    return rng.normal(0, 0.5, (windows, mels, frames)).astype(np.float32)


def view(values: NDArray[Any]) -> Any:
    return ctranslate2.StorageView.from_array(values)


def scores(model: Any, output: Any) -> Any:
    prompts = [PROMPT] * output.shape[0]
    return [r.scores for r in model.generate(output, prompts, max_length=20, return_scores=True)]


def spoken(recognition: Recognition) -> list[Any]:
    words = [[w.text for w in s.words] for s in recognition.segments]
    return [(s.text, s.start, s.end) for s in recognition.segments] + words


@pytest.mark.parametrize(("windows", "frames"), [(1, 1000), (17, 100), (2, 101), (3, 1)])
def test_the_output_is_that_of_ctranslate2(demo: Path, windows: int, frames: int) -> None:
    values = view(features(windows, frames=frames))
    found, expected = (np.array(m.encode(values)) for m in (split(demo), whole(demo)))
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "quantisation", ["float32", "float16", "bfloat16", "int16", "int8", "int8_float16"]
)
def test_weights_are_read_in_every_format_of_a_file(tmp_path: Path, quantisation: str) -> None:
    folder = build(tmp_path / "model", TINY, quantisation)
    values = view(features(2, mels=128))
    found, expected = (np.array(m.encode(values)) for m in (split(folder), whole(folder)))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("compute_type", "given", "tolerance"),
    [("float16", torch.float16, 0.03), ("int8_bfloat16", torch.float32, 0.3)],
)
def test_a_narrow_type_is_handed_over_in_a_type_that_ctranslate2_takes(
    demo: Path, compute_type: str, given: torch.dtype, tolerance: float
) -> None:
    values = features(2)
    output = TorchEncoder(ModelBin(demo), device="cpu", compute_type=compute_type).encode(values)
    assert (output.dtype, output.is_contiguous()) == (given, True)
    model = whole(demo)
    expected = model.encode(view(values))
    np.testing.assert_allclose(output.float(), np.array(expected), atol=tolerance)
    np.testing.assert_allclose(
        scores(model, view(output.numpy())), scores(model, expected), atol=tolerance
    )


def test_the_decoder_alone_gives_what_the_whole_model_gives(tiny: Path) -> None:
    model = whole(tiny)
    output = model.encode(view(features(2, mels=128)))
    with decoder_folder(tiny) as folder:
        size = (folder / "model.bin").stat().st_size
        decoder = whole(folder)
    encoder = [ModelBin(tiny)[name] for name in ModelBin(tiny).encoder_names()]
    assert size < (tiny / "model.bin").stat().st_size - sum(len(v.data) for v in encoder) / 2
    assert not folder.exists()
    for name in ("n_mels", "is_multilingual", "num_languages", "compute_type", "device"):
        assert getattr(decoder, name) == getattr(model, name)
    assert scores(decoder, output) == scores(model, output)
    assert decoder.detect_language(output) == model.detect_language(output)
    aligned = [m.align(output, PROMPT, [[5, 6, 7]] * 2, 1000) for m in (decoder, model)]
    assert aligned[0][1].alignments == aligned[1][1].alignments
    assert aligned[0][1].text_token_probs == aligned[1][1].text_token_probs


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dialogue-en", replace(FAST, beam_size=5, word_timestamps=True)),
        ("dialogue-ru", replace(FAST, vad_filter=True, batch_size=4, word_timestamps=True)),
    ],
    ids=["sequential", "batched"],
)
def test_the_text_of_the_demo_audio_is_the_same(
    demo: Path, demo_audio: Path, name: str, options: TranscribeOptions
) -> None:
    samples = load(demo_audio / f"{name}.flac")
    found, expected = (
        engine(demo, encoder).transcribe(samples, options) for encoder in ("torch", "ctranslate2")
    )
    assert found.language == expected.language
    assert spoken(found) == spoken(expected)
    assert len(found.segments) > 4


def engine(folder: Path, encoder: Asked) -> WhisperEngine:
    found = WhisperEngine(folder, device="cpu", compute_type="float32", threads=1, encoder=encoder)
    found.warm_up()
    assert found.encoder == encoder
    return found


def test_threads_share_an_encoder(demo: Path) -> None:
    model = split(demo)
    batches = [features(size, frames=200) for size in (1, 2, 3, 4)]
    expected = [np.array(model.encode(view(batch))) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: np.array(model.encode(view(batch))), batches * 3))
    for output, alone in zip(found, expected * 3, strict=True):
        np.testing.assert_allclose(output, alone, atol=1e-4)


def test_a_view_keeps_its_output_alive(demo: Path) -> None:
    model = split(demo)
    values = view(features(2, frames=100))
    expected = np.array(model.encode(values))
    outputs = [model.encode(values, to_cpu=True) for _ in range(20)]
    assert all(np.array_equal(np.array(output), expected) for output in outputs)


def test_a_batch_that_does_not_fit_is_halved(
    demo: Path, demo_audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = load(demo_audio / "dialogue-en.flac")[: 22 * SAMPLE_RATE]
    options = replace(FAST, vad_filter=True, batch_size=4)
    model = engine(demo, "torch")
    expected = spoken(model.transcribe(samples, options))
    encode = TorchEncoder.encode

    def full(self: Any, values: Any) -> Any:
        if len(values) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 MiB.")
        return encode(self, values)

    monkeypatch.setattr(TorchEncoder, "encode", full)
    assert spoken(model.transcribe(samples, options)) == expected
    with pytest.raises(torch.OutOfMemoryError) as caught:
        split(demo).encode(view(features(2)))
    assert is_out_of_memory(caught.value)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has CUDA and sees a card; nothing runs on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name)
    )


@pytest.mark.parametrize(
    ("asked", "device", "compute_type", "chosen"),
    [
        ("auto", "cuda", "bfloat16", "torch"),
        ("auto", "cuda", "float32", "torch"),
        ("auto", "cuda", "int8_float16", "ctranslate2"),
        ("torch", "cuda", "int8_float16", "torch"),
        ("ctranslate2", "cuda", "bfloat16", "ctranslate2"),
        ("auto", "cpu", "int8", "ctranslate2"),
        ("torch", "cpu", "int8", "torch"),
    ],
)
@pytest.mark.usefixtures("card")
def test_auto_is_torch_on_a_gpu_unless_the_weights_are_to_be_small(
    demo: Path, asked: Asked, device: str, compute_type: str, chosen: str
) -> None:
    files = WhisperFiles(demo, device=device, compute_type=compute_type, encoder=asked)
    assert files.encoder == chosen


def test_auto_is_ctranslate2_with_the_reason_where_torch_is_not_there(
    demo: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def chosen() -> str:
        return WhisperFiles(demo, device="cuda", compute_type="float16", encoder="auto").encoder

    with caplog.at_level(logging.INFO):
        assert chosen() == "ctranslate2"  # there is no card here
        without_torch(monkeypatch)
        assert chosen() == "ctranslate2"
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(": ")[1] for message in messages] == [
        "torch is installed without CUDA, or shows no GPU",
        "torch is not installed",
    ]
    assert all("encoder of Whisper runs in CTranslate2" in message for message in messages)
    with pytest.raises(ModelNotInstalled, match="cannot run in torch: torch is not installed"):
        WhisperEngine(demo, device="cpu", compute_type="int8", threads=1, encoder="torch")


def rewritten(folder: Path, old: bytes, new: bytes) -> Path:
    data = (folder / "model.bin").read_bytes()
    assert old in data
    (folder / "model.bin").write_bytes(data.replace(old, new, 1))
    return folder


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (struct.pack("<I", 6), struct.pack("<I", 7), "the unknown version 7"),
        (b"WhisperSpec", b"MarianSpec2", "is a MarianSpec2, not a WhisperSpec"),
        (b"encoder/conv1/bias", b"encoder/conv9/bias", "unknown variables: encoder/conv9/bias"),
    ],
)
@pytest.mark.usefixtures("card")
def test_auto_leaves_a_file_of_another_format_to_ctranslate2(
    tiny: Path, caplog: pytest.LogCaptureFixture, old: bytes, new: bytes, reason: str
) -> None:
    folder = rewritten(tiny, old, new)
    with caplog.at_level(logging.INFO):
        files = WhisperFiles(folder, device="cuda", compute_type="float16", encoder="auto")
    assert files.encoder == "ctranslate2"
    assert reason in caplog.text


@pytest.mark.parametrize("size", [3, 40, 5000])
def test_a_file_that_is_cut_off_is_reported(tiny: Path, size: int) -> None:
    os.truncate(tiny / "model.bin", size)
    with pytest.raises(UnknownFormat, match=r"model\.bin is cut off"):
        ModelBin(tiny)


@pytest.mark.parametrize("mels", [80, 128])
def test_features_in_torch_are_those_of_the_library(demo_audio: Path, mels: int) -> None:
    rng = np.random.default_rng(3)
    seconds = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.9 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    noise = rng.normal(0, 0.1, 130 * SAMPLE_RATE + 77).astype(np.float32)  # three blocks
    speech: Samples = load(demo_audio / "dialogue-ru.flac")
    for samples in (speech, tone, noise, noise[:1700], np.zeros(SAMPLE_RATE, np.float32)):
        expected = FeatureExtractor(feature_size=mels)(samples)
        found = TorchFeatures("cpu", feature_size=mels)(samples)
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-4)
