"""The base of the model deployments: engines by model id, their bounds, and Serve's hooks."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.catalogue import Catalogue
from configs.engine_settings import ModelSettings
from deployments.runtime import host
from deployments.runtime import metrics as replica_metrics
from deployments.runtime.host import EngineHost, RecogniserHost
from deployments.runtime.model_access import Hardware, ModelFiles
from engines import device
from engines.cancellation import raise_if_cancelled
from engines.device import Loaded, Target
from speech.audio import Audio, Samples
from speech.errors import EngineFailed, ModelNotFound, ModelUnavailable, OutOfMemory
from speech.ports import TranscribeOptions
from speech.transcript import Recognition, Segment
from tests.unit.fake_card import NAME, TOTAL_MB, FakeCard

WAIT_S = 20.0
STEREO = Audio(np.zeros(3, np.float32), np.array([[1, 1, 1], [2, 2, 2]], np.float32))


class Engine:
    """Recognises the samples as numbers; can be held between two pieces of its work."""

    compute_type = "int8"

    def __init__(self, model: str, proceed: threading.Event) -> None:
        self.windows = 0
        self.model = model
        self.proceed = proceed

    def warm_up(self) -> None:
        self.windows += 1

    def transcribe(
        self,
        samples: Samples,
        options: TranscribeOptions,
        cancelled: Callable[[], bool],
        report: Callable[[float], None],
        emit: Callable[[Segment], None],
    ) -> Recognition:
        segment = Segment(0.0, 1.0, f"{self.model} {samples.tolist()}")
        report(1.0)
        emit(segment)
        assert self.proceed.wait(WAIT_S)
        raise_if_cancelled(cancelled)
        return Recognition((segment,), "en", 1.0)


class Recogniser(RecogniserHost):
    """A deployment of fake engines."""

    target = Target("auto", False)

    def load(self, model: str) -> Loaded[Engine]:
        if model == "missing":
            raise ModelNotFound("no such model")
        self.loads = [*getattr(self, "loads", []), model]
        self.proceed = threading.Event()
        self.proceed.set()
        return device.load(
            model, self.target, "ctranslate2", lambda on: Engine(model, self.proceed)
        )


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The model ids that were announced to Serve, which is not there."""
    ids: list[str] = []

    def multiplexed(load: Any, max_num_models_per_replica: int) -> Any:
        async def announce(model: str) -> str:
            ids.append(model)
            return model

        return announce

    monkeypatch.setattr(host.serve, "multiplexed", multiplexed)
    monkeypatch.setattr(host, "hardware", lambda settings: Hardware(Target("cpu"), "auto", 1))
    return ids


def recogniser(cls: type[Recogniser] = Recogniser, **settings: Any) -> Recogniser:
    files = ModelFiles(Catalogue.load(), Path(), offline=True)
    return cls(ModelSettings.model_validate({"default_model": "a", **settings}), files)


def models(deployment: EngineHost[Any]) -> list[str]:
    return sorted(entry["model_name"] for entry in deployment.cache_stats())


def options(model: str) -> TranscribeOptions:
    return TranscribeOptions(model=model)


async def test_preloaded_models_are_loaded_and_announced(announced: list[str]) -> None:
    deployment = recogniser(preload=["a", "b"])
    assert models(deployment) == ["a", "b"]
    await deployment.check_health()
    assert sorted(announced) == ["a", "b"]


async def test_a_call_runs_on_the_engine_of_its_model_with_the_samples_of_its_channel(
    announced: list[str],
) -> None:
    deployment = recogniser(preload=[])
    packed = await deployment.transcribe(STEREO, options("b"), 1, None)
    (segment,) = Recognition.unpack(packed).segments
    assert segment.text == "b [2.0, 2.0, 2.0]"
    assert announced == ["b"]
    await deployment.transcribe(STEREO, options("b"), None, None)
    assert deployment.loads == ["b"]


async def test_a_model_that_cannot_be_loaded_fails_the_call_alone(announced: list[str]) -> None:
    deployment = recogniser()
    with pytest.raises(ModelNotFound):
        await deployment.transcribe(STEREO, options("missing"), None, None)
    assert await deployment.transcribe(STEREO, options("a"), None, None)


async def test_the_progress_of_a_job_is_reported_while_its_call_runs(announced: list[str]) -> None:
    deployment = recogniser()
    deployment.proceed.clear()
    running = asyncio.create_task(deployment.transcribe(STEREO, options("a"), None, "job_1"))
    async with asyncio.timeout(WAIT_S):
        while deployment.progress() != {"job_1": 1.0}:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    deployment.proceed.set()
    await running
    assert deployment.progress() == {}


async def test_a_stream_has_a_segment_before_the_recognition_ends(announced: list[str]) -> None:
    deployment = recogniser(preload=["a"])
    deployment.proceed.clear()
    parts = deployment.stream(STEREO, options("a"))
    async with asyncio.timeout(WAIT_S):
        first = Recognition.unpack(await anext(parts))
    assert [segment.text for segment in first.segments] == ["a [0.0, 0.0, 0.0]"]
    deployment.proceed.set()
    (last,) = [Recognition.unpack(part) async for part in parts]
    assert last == Recognition((), "en", 1.0)


async def test_a_stream_that_is_closed_cancels_its_recognition(announced: list[str]) -> None:
    deployment = recogniser(preload=["a"])
    deployment.proceed.clear()
    parts = deployment.stream(STEREO, options("a"))
    async with asyncio.timeout(WAIT_S):
        await anext(parts)
        await parts.aclose()
        deployment.proceed.set()
        assert await deployment.transcribe(STEREO, options("a"), None, None)


async def test_a_stream_raises_the_error_of_its_engine(announced: list[str]) -> None:
    with pytest.raises(ModelNotFound):
        await anext(recogniser().stream(STEREO, options("missing")))


async def test_new_bounds_hold_at_once_and_the_arguments_again_when_absent(
    announced: list[str],
) -> None:
    deployment = recogniser(preload=["a", "b"], max_models=2)
    deployment.reconfigure({"max_models": 1})
    assert models(deployment) == ["b"]
    deployment.reconfigure({})
    await deployment.transcribe(STEREO, options("a"), None, None)
    assert models(deployment) == ["a", "b"]


def test_a_misspelt_bound_is_refused(announced: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^user_config.max_model: Extra inputs are not"):
        recogniser().reconfigure({"max_model": 1})


async def test_an_idle_model_is_unloaded_by_the_health_check(announced: list[str]) -> None:
    deployment = recogniser(idle_ttl_s=1e-9)
    await deployment.check_health()
    assert models(deployment) == []


class Card:
    """Memory for so many models or calls at once: what does not fit is reported as on a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shortages: list[str] = []
        self.met: list[str] = []
        """The models for which an out-of-memory was counted."""
        monkeypatch.setattr(host, "count_out_of_memory", self.met.append)

    def allocate(self, what: str) -> None:
        if what in self.shortages:
            self.shortages.remove(what)
            raise RuntimeError("CUDA failed with error out of memory")


@pytest.fixture
def card(announced: list[str], monkeypatch: pytest.MonkeyPatch) -> Card:
    """The memory of :class:`Recogniser`, which has shortages when a test adds them."""
    card = Card(monkeypatch)
    load, transcribe = Recogniser.load, Engine.transcribe

    def load_in_memory(self: Recogniser, model: str) -> Any:
        engine = load(self, model)
        card.allocate(f"load {model}")
        return engine

    def transcribe_in_memory(self: Engine, *arguments: Any) -> Recognition:
        try:
            card.allocate(f"run {self.model}")
        except RuntimeError as error:
            raise EngineFailed("the model failed") from error
        return transcribe(self, *arguments)

    monkeypatch.setattr(Recogniser, "load", load_in_memory)
    monkeypatch.setattr(Engine, "transcribe", transcribe_in_memory)
    return card


async def test_an_out_of_memory_unloads_what_is_not_in_use_and_repeats_the_call(card: Card) -> None:
    deployment = recogniser(preload=["a", "b"])
    card.shortages = ["run a"]
    assert await deployment.transcribe(STEREO, options("a"), None, None)
    assert models(deployment) == ["a"]
    assert (deployment.loads, card.met) == (["a", "b"], ["a"])


async def test_an_out_of_memory_that_nothing_can_help_is_raised_and_the_next_call_works(
    card: Card,
) -> None:
    deployment = recogniser()
    card.shortages = ["run a"]
    with pytest.raises(OutOfMemory, match="does not suffice for model a") as error:
        await deployment.transcribe(STEREO, options("a"), None, None)
    assert error.value.__cause__ is error.value.__context__ is None, "it keeps what was allocated"
    assert await deployment.transcribe(STEREO, options("a"), None, None)
    assert (deployment.loads, card.met) == (["a"], ["a"])


async def test_a_second_out_of_memory_is_raised(card: Card) -> None:
    deployment = recogniser(preload=["a", "b"])
    card.shortages = ["run a", "run a"]
    with pytest.raises(OutOfMemory):
        await deployment.transcribe(STEREO, options("a"), None, None)
    assert card.met == ["a", "a"]
    assert await deployment.transcribe(STEREO, options("a"), None, None)


async def test_a_model_that_does_not_fit_is_loaded_in_the_place_of_one_that_is_not_in_use(
    card: Card,
) -> None:
    deployment = recogniser(preload=["a"])
    card.shortages = ["load b"]
    assert await deployment.transcribe(STEREO, options("b"), None, None)
    assert (models(deployment), deployment.loads) == (["b"], ["a", "b", "b"])


async def test_a_model_that_does_not_fit_beside_those_in_use_leaves_them_as_they_are(
    card: Card,
) -> None:
    deployment = recogniser(preload=["a"], concurrency=2)
    held = deployment.proceed
    held.clear()
    running = asyncio.create_task(deployment.transcribe(STEREO, options("a"), None, None))
    async with asyncio.timeout(WAIT_S):
        while not deployment.cache_stats()[0]["in_use"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    card.shortages = ["load b"]
    with pytest.raises(OutOfMemory):
        await deployment.transcribe(STEREO, options("b"), None, None)
    assert models(deployment) == ["a"]
    held.set()
    assert await running
    assert await deployment.transcribe(STEREO, options("b"), None, None)


class OnAGpu(Recogniser):
    """One to which Ray has assigned a GPU."""

    target = Target("auto", True)


class OnlyOnAGpu(Recogniser):
    """The same, with ``device: cuda``."""

    target = Target("cuda", True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    return FakeCard(monkeypatch, tmp_path)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The labels of the gauge of devices, as often as it was set to 1."""
    labels: list[dict[str, str]] = []

    class Gauge:
        def set(self, value: float, tags: dict[str, str]) -> None:
            assert value == 1
            labels.append(tags)

    monkeypatch.setattr(replica_metrics, "_model_device", Gauge)
    return labels


async def test_a_model_on_the_gpu_is_so_in_the_statistics_and_the_metric(
    announced: list[str], gpu: FakeCard, devices: list[dict[str, str]]
) -> None:
    gpu.install("cublas", "libcublas.so.12")
    deployment = recogniser(OnAGpu)
    (row,) = deployment.cache_stats()
    assert (row["asked"], row["device"], row["fallback"]) == ("auto", "cuda", None)
    assert (row["gpu"], row["gpu_total_mb"]) == (NAME, TOTAL_MB)
    assert (row["model_name"], row["wrapper_class"]) == ("a", "Engine")
    await deployment.check_health()
    assert devices == [{"model": "a", "asked": "auto", "device": "cuda", "compute_type": "int8"}]


async def test_a_number_format_that_changes_at_run_time_is_reported(
    announced: list[str], devices: list[dict[str, str]]
) -> None:
    deployment = recogniser(preload=["a"])

    def widen(engine: Any, call: Any) -> None:
        engine.compute_type = "float32"

    await deployment._run("a", widen, None)
    assert [row["compute_type"] for row in deployment.cache_stats()] == ["float32"]
    await deployment.check_health()
    assert devices[-1]["compute_type"] == "float32"


async def test_a_missing_library_is_one_warning_and_shows_in_the_statistics_and_the_metric(
    announced: list[str],
    gpu: FakeCard,
    devices: list[dict[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    deployment = recogniser(OnAGpu)
    (row,) = deployment.cache_stats()
    assert (row["asked"], row["device"]) == ("auto", "cpu")
    assert row["fallback"].startswith("libcublas.so.12 is missing (")
    assert row["fallback"].endswith(
        "`make setup GPU=1` brings it, or `pip install nvidia-cublas-cu12`"
    )
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert row["fallback"] in warning
    await deployment.check_health()
    assert devices == [{"model": "a", "asked": "auto", "device": "cpu", "compute_type": "int8"}]


def test_a_replica_that_needs_the_gpu_does_not_start_without_a_library(
    announced: list[str], gpu: FakeCard
) -> None:
    with pytest.raises(ModelUnavailable, match=r"device is cuda, and libcublas\.so\.12 is missing"):
        recogniser(OnlyOnAGpu)


async def test_a_replica_that_needs_the_gpu_fails_a_call_for_a_model_that_loads_on_use(
    announced: list[str], gpu: FakeCard
) -> None:
    deployment = recogniser(OnlyOnAGpu, preload=[])
    with pytest.raises(ModelUnavailable, match="model b does not run on the GPU"):
        await deployment.transcribe(STEREO, options("b"), None, None)


async def test_every_model_has_run_a_window_before_its_first_call(announced: list[str]) -> None:
    deployment = recogniser(preload=["a"])
    for model in ("a", "b"):
        windows = await deployment._run(model, lambda engine, call: engine.windows, None)
        assert windows == 1
