"""The first window of each engine reaches its model, so that what fails there fails at the load."""

from pathlib import Path
from typing import Any

import pytest

from configs.catalogue import REPOSITORY_ROOT, Catalogue, ModelEntry
from engines.device import Loaded, Target, load

DEMO = REPOSITORY_ROOT / "models/demo"

pytestmark = pytest.mark.skipif(
    not DEMO.joinpath("demo-vosk/model.onnx").exists(), reason="the demo models are not here"
)


class Broken(Exception):
    """What the part of a model that has been replaced raises."""


def fail(*_: Any, **__: Any) -> None:
    raise Broken


def entry(model: str) -> tuple[ModelEntry, Path]:
    found = Catalogue.load().find(model)
    assert found is not None
    return found, DEMO / model


def test_of_an_offline_recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = pytest.importorskip("engines.onnx_asr.offline")
    loaded = load(
        "demo-vosk",
        Target("cpu"),
        "sherpa_onnx",
        lambda on: offline.OnnxAsrEngine(*entry("demo-vosk"), device=on),
    )
    assert loaded.placement.compute_type == "float32"
    monkeypatch.setattr(loaded.engine._backend, "decode", fail)
    with pytest.raises(Broken):
        loaded.engine.warm_up()


def test_of_a_streaming_recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = pytest.importorskip("engines.onnx_asr.streaming")
    loaded = load(
        "demo-vosk-streaming",
        Target("cpu"),
        "sherpa_onnx",
        lambda on: streaming.StreamingEngine(*entry("demo-vosk-streaming"), device=on),
    )
    assert loaded.placement.compute_type == "float32"
    monkeypatch.setattr(loaded.engine._library, "decode_streams", fail)
    with pytest.raises(streaming.EngineFailed):
        loaded.engine.warm_up()


def diarization(model: str) -> Loaded[Any]:
    from engines.diarization.backends import backend, load_engine

    demo, path = entry(model)
    return load(
        demo.id,
        Target("cpu"),
        backend(demo),
        lambda on: load_engine(demo, path, device=on, threads=1),
    )


@pytest.mark.parametrize("part", ["_segmentation", "_embedding"])
def test_of_both_models_of_pyannote(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyannote.audio")
    loaded = diarization("demo-pyannote")
    assert loaded.placement.compute_type == "float32"
    monkeypatch.setattr(loaded.engine._pipeline, part, fail)
    with pytest.raises(Broken):
        loaded.engine.warm_up()


def test_of_the_light_backend_of_diarization(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sherpa_onnx")
    loaded = diarization("demo-diarization-light")
    assert loaded.placement.compute_type == "float32"
    monkeypatch.setattr(loaded.engine._worker, "process", fail)
    with pytest.raises(Broken):
        loaded.engine.warm_up()


def test_of_the_speaker_model(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = pytest.importorskip("engines.diarization.speaker_embedding")
    engine = embedding.SpeakerEngine(DEMO / "demo-diarization-light", device="cpu")
    engine.warm_up()
    monkeypatch.setattr(engine, "_extractor", None)
    with pytest.raises(AttributeError):
        engine.warm_up()
