import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from configs.catalogue import REPOSITORY_ROOT
from engines.device import Target, load
from engines.emotion import LABELS, SHORTEST_S, WINDOW_S, EmotionEngine, log_mel
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, EngineFailed, ModelUnavailable
from tests.unit.fake_card import FakeCard

DEMO = REPOSITORY_ROOT / "models/demo/demo-gigaam-emo"


def save_model(directory: Path, scale: float = 0.02) -> Path:
    """A model of the right shape: softmax of a random projection of the mean over all frames."""
    weights = np.random.default_rng(0).normal(0, scale, (64, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["features"], ["mean"], axes=[2], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probs"], axis=-1),
        ],
        "emotion",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 64, "frames"]),
            helper.make_tensor_value_info("feature_lengths", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, directory / "model.onnx")
    return directory


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EmotionEngine:
    return EmotionEngine(save_model(tmp_path_factory.mktemp("emo")), device="cpu", threads=1)


def clip(seconds: float, seed: int = 0) -> Samples:
    """Read-only noise with a slowly changing spectrum, so that every part is different."""
    count = round(seconds * SAMPLE_RATE)
    noise = np.random.default_rng(seed).normal(0, 0.1, count)
    samples = (noise * np.linspace(0.1, 1, count) ** 2 + noise.cumsum() * 1e-3).astype(np.float32)
    samples.flags.writeable = False
    return samples


@pytest.mark.parametrize("seconds", [0.0127, 0.3, 1.2345, 5.0])
def test_features_equal_those_of_torchaudio(seconds: float) -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchaudio.transforms")
    samples = clip(seconds)
    mel = transforms.MelSpectrogram(16_000, n_fft=400, win_length=400, hop_length=160, n_mels=64)
    # In float64: how torch rounds float32 differs from one processor to the next.
    exact = mel.double()(torch.tensor(samples, dtype=torch.float64))
    reference = exact.clamp(1e-9, 1e9).log().numpy()
    features = log_mel(samples)
    assert features.shape == reference.shape == (64, len(samples) // 160 + 1)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, reference, atol=1e-4)


def test_features_of_silence_are_the_floor() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(1600, np.float32)), np.log(1e-9), rtol=1e-6)


def test_what_a_clip_is_batched_with_does_not_change_its_answer(engine: EmotionEngine) -> None:
    lengths = [0.05, 1.0, 1.0, 2.5, 1.0, 31.7, 0.3, 15.0, 2.501]
    clips = [clip(seconds, seed) for seed, seconds in enumerate(lengths)]
    together = engine.classify(clips)
    for each, scores in zip(clips, together, strict=True):
        (alone,) = engine.classify([each])
        assert scores == pytest.approx(alone, abs=1e-6)
    assert len({round(scores["angry"], 4) for scores in together}) > 5


def test_scores_name_every_label_and_sum_to_one(engine: EmotionEngine) -> None:
    (scores,) = engine.classify([clip(1.0)])
    assert tuple(scores) == LABELS
    assert sum(scores.values()) == pytest.approx(1)


def test_a_long_clip_is_the_average_of_its_windows_by_what_each_adds(
    engine: EmotionEngine,
) -> None:
    window = round(WINDOW_S * SAMPLE_RATE)
    long = clip(WINDOW_S * 2 + 3)
    first, second, last = engine.classify(
        [long[:window], long[window : 2 * window], long[-window:]]
    )
    (whole,) = engine.classify([long])
    for label in LABELS:
        expected = (WINDOW_S * first[label] + WINDOW_S * second[label] + 3 * last[label]) / (
            WINDOW_S * 2 + 3
        )
        assert whole[label] == pytest.approx(expected, abs=1e-6)


def test_a_short_clip_is_padded_with_silence_on_both_sides(engine: EmotionEngine) -> None:
    short = clip(0.1)
    shortest = round(SHORTEST_S * SAMPLE_RATE)
    padded = np.zeros(shortest, np.float32)
    start = (shortest - len(short)) // 2
    padded[start : start + len(short)] = short
    (scores,) = engine.classify([short])
    assert scores == pytest.approx(engine.classify([padded])[0], abs=1e-6)
    assert scores != pytest.approx(engine.classify([np.zeros_like(padded)])[0], abs=1e-3)


def test_an_empty_clip_gives_equal_probabilities(engine: EmotionEngine) -> None:
    scores = engine.classify([clip(1), clip(0)])[1]
    assert scores == dict.fromkeys(LABELS, 0.25)


def test_no_clips_give_no_scores(engine: EmotionEngine) -> None:
    assert engine.classify([]) == []


@given(length=st.integers(0, 6000), level=st.sampled_from([0.0, 1e-30, 1.0, 1e18, np.nan, np.inf]))
def test_no_clip_is_so_short_or_so_broken_that_its_scores_are_no_numbers(
    engine: EmotionEngine, length: int, level: float
) -> None:
    (scores,) = engine.classify([np.full(length, level, np.float32)])
    assert sum(scores.values()) == pytest.approx(1)


def test_a_batch_that_does_not_fit_the_memory_is_split(
    engine: EmotionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip(1, seed) for seed in range(5)]
    expected = engine.classify(clips)
    session, sizes = engine._session, []

    def run(names: list[str], inputs: dict[str, Any]) -> Any:
        sizes.append(len(inputs["features"]))
        if sizes[-1] > 2:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 939524096")
        return session.run(names, inputs)

    monkeypatch.setattr(engine, "_session", SimpleNamespace(run=run))
    assert engine.classify(clips) == expected
    assert sizes == [5, 2, 2, 1]


def test_the_labels_of_a_model_go_before_the_usual_ones(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(["a", "b", "c", "d"]))
    (scores,) = EmotionEngine(tmp_path, device="cpu", threads=1).classify([clip(1)])
    assert list(scores) == ["a", "b", "c", "d"]


def test_a_model_with_another_number_of_labels_fails_clearly(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(["calm", "cross"]))
    with pytest.raises(EngineFailed, match="shape"):
        EmotionEngine(tmp_path, device="cpu", threads=1).classify([clip(1)])


def test_probabilities_that_are_nan_are_an_error(tmp_path: Path) -> None:
    engine = EmotionEngine(save_model(tmp_path, scale=float("nan")), device="cpu", threads=1)
    with pytest.raises(EngineFailed, match="not finite"):
        engine.classify([clip(1)])


def test_a_missing_model_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="does not load"):
        EmotionEngine(tmp_path, device="cpu", threads=1)


def test_cancelling_stops_before_the_next_batch(engine: EmotionEngine) -> None:
    polls = iter([False, True])
    with pytest.raises(Cancelled):
        engine.classify([clip(1), clip(2), clip(3)], lambda: next(polls))


@pytest.mark.skipif(not DEMO.joinpath("model.onnx").exists(), reason="the demo model is not here")
def test_the_demo_model_speaks_the_contract() -> None:
    engine = EmotionEngine(DEMO, device="cpu", threads=1)
    clips = [clip(0.2), clip(1, 1), clip(1, 2), clip(40)]
    for each, scores in zip(clips, engine.classify(clips), strict=True):
        assert set(scores) == set(LABELS)
        assert scores == pytest.approx(engine.classify([each])[0], abs=1e-5)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An onnxruntime with CUDA, whose sessions have the providers of ``created``."""
    real = onnxruntime.InferenceSession
    options: dict[str, Any] = {"created": ["CUDAExecutionProvider", "CPUExecutionProvider"]}

    def session(path: str, settings: Any, **given: Any) -> Any:
        options["asked"] = given
        made = real(path, settings, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(made, "get_providers", lambda: options["created"])
        return made

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return options


def test_on_a_gpu_the_cuda_provider_goes_first_and_does_not_fall_back(
    sessions: dict[str, Any], tmp_path: Path
) -> None:
    engine = EmotionEngine(save_model(tmp_path), device="cuda", threads=1)
    assert sessions["asked"] == {
        "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "enable_fallback": 0,
    }
    engine.warm_up()


def test_a_session_that_onnxruntime_moved_to_the_cpu_is_no_engine_on_the_gpu(
    sessions: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCard(monkeypatch, tmp_path).install("cudnn", "libcudnn.so.9")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda msvc: None)
    sessions["created"] = ["CPUExecutionProvider"]
    path = save_model(tmp_path)
    placement = load(
        "emo",
        Target("auto", True),
        "onnxruntime",
        lambda on: EmotionEngine(path, device=on, threads=1),
    ).placement
    assert (placement.device, placement.compute_type) == ("cpu", "float32")
    assert placement.fallback == (
        "the emotion model does not load on the GPU: onnxruntime has no CUDAExecutionProvider; "
        "it wrote the reason to stderr"
    )


def test_a_model_that_fails_does_so_in_its_first_window(tmp_path: Path) -> None:
    engine = EmotionEngine(save_model(tmp_path, scale=float("nan")), device="cpu", threads=1)
    with pytest.raises(EngineFailed, match="not finite"):
        engine.warm_up()
