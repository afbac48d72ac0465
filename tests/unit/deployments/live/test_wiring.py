"""When the models of live streams load, in an ingress replica."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.catalogue import Catalogue
from configs.settings import IngressSettings, LiveSettings
from deployments.live import wiring
from deployments.live.wiring import LazyEmbedder, live_ports, local_models
from deployments.runtime.model_access import ModelFiles
from speech.audio import Samples
from speech.errors import ModelUnavailable

SECOND: Samples = np.zeros(16_000, np.float32)


class Engine:
    """An embedder that needs no model."""

    async def embed(self, samples: Samples) -> np.ndarray:
        return np.ones(2, np.float32)


async def test_streams_that_wait_for_the_model_share_one_load_off_the_event_loop() -> None:
    may_end = threading.Event()
    loads: list[str] = []

    def load() -> Engine:
        loads.append(threading.current_thread().name)
        assert may_end.wait(30)
        return Engine()

    embedder = LazyEmbedder(load)
    waiting = [asyncio.create_task(embedder.embed(SECOND)) for _ in range(3)]
    waiting[0].cancel()
    await asyncio.sleep(0.01)  # the event loop runs while the model loads
    may_end.set()
    first, *others = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert all(np.array_equal(vector, [1, 1]) for vector in others)
    await embedder.embed(SECOND)
    assert len(loads) == 1
    assert loads[0] != threading.main_thread().name


@pytest.mark.parametrize(
    "error", [ModelUnavailable("the hub is not reachable"), OSError("the disk is full")]
)
async def test_a_load_that_fails_is_an_error_of_the_family_and_is_tried_again(
    error: Exception,
) -> None:
    results: list[Exception | Engine] = [error, Engine()]

    def load() -> Engine:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    embedder = LazyEmbedder(load)
    both = await asyncio.gather(
        embedder.embed(SECOND), embedder.embed(SECOND), return_exceptions=True
    )
    assert [type(outcome) for outcome in both] == [ModelUnavailable, ModelUnavailable]
    assert str(error) in str(both[0])
    assert np.array_equal(await embedder.embed(SECOND), [1, 1])


@pytest.mark.parametrize(
    ("live", "assigned", "loads"),
    [({}, [], []), ({}, [0], ["demo-vosk-streaming"]), ({"preload": ["a", "b"]}, [0], ["a", "b"])],
)
def test_streaming_models_of_an_ingress_load_before_it_is_ready_only_on_a_gpu(
    live: dict[str, Any],
    assigned: list[int],
    loads: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("ray.get_gpu_ids", lambda: assigned)
    monkeypatch.setattr(wiring, "streaming_engine", lambda models, model: loaded.append(model))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    files = ModelFiles(Catalogue.load(), Path(), offline=True)
    settings = LiveSettings.model_validate({"default_model": "demo-vosk-streaming", **live})
    ingress = IngressSettings(default_transcriber="demo-vosk")
    models = local_models(settings, ingress, files)
    assert models is not None
    assert loaded == loads
    replicas = settings.model_copy(update={"placement": "replicas"})
    assert local_models(replicas, ingress, files) is None


@pytest.mark.parametrize(("num_cpus", "threads"), [(0.1, 1), (4, 4)])
def test_a_recogniser_in_the_ingress_decodes_on_all_cpus_of_it(
    num_cpus: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    monkeypatch.setattr("ray.get_gpu_ids", list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(
        "engines.onnx_asr.local_recognizer.LocalRecognizer",
        lambda load, *, tick_s, max_streams, threads: built.append(threads),
    )
    catalogue = Catalogue.load()
    files = ModelFiles(catalogue, Path(), offline=True)
    live = LiveSettings.model_validate({"default_model": "demo-vosk-streaming"})
    ingress = IngressSettings.model_validate(
        {"default_transcriber": "demo-vosk", "resources": {"num_cpus": num_cpus}}
    )
    models = local_models(live, ingress, files)
    live_ports(live, ingress, files, catalogue, {}, {}, models)
    assert built == [threads]
