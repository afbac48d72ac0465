"""Where a model is loaded, with a card that is there or not."""

import logging
from dataclasses import asdict
from pathlib import Path

import pytest

from engines import gpu
from engines.device import Asked, Device, Loaded, Target, load
from speech.errors import ModelNotInstalled, ModelUnavailable, OutOfMemory
from tests.unit.fake_card import NAME, TOTAL_MB, FakeCard

CUBLAS_MISSING = (
    "libcublas.so.12 is missing (libcublas.so.12: cannot open shared object file: No such file or "
    "directory); `make setup GPU=1` brings it, or `pip install nvidia-cublas-cu12`"
)
NOT_ASSIGNED = "no GPU is assigned to this replica (resources.num_gpus is 0)"
NOT_VISIBLE = "the CUDA driver (libcuda.so.1) shows no GPU to this process"


class Engine:
    """Takes 2500 MiB of the card when it runs its first window there."""

    failure: Exception | None = None
    """What its first window raises on a GPU."""

    def __init__(self, device: Device, card: FakeCard) -> None:
        self.device = device
        self.card = card
        self.windows = 0

    @property
    def compute_type(self) -> str:
        return "float16" if self.device == "cuda" else "int8"

    def warm_up(self) -> None:
        if self.device == "cuda":
            if self.failure is not None:
                raise self.failure
            self.card.used_mb += 2500
        self.windows += 1


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    """A card with the library that the backend needs."""
    card = FakeCard(monkeypatch, tmp_path)
    card.install("cublas", "libcublas.so.12")
    return card


@pytest.fixture
def no_cublas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    """A card without it."""
    return FakeCard(monkeypatch, tmp_path)


def loaded(target: Target, card: FakeCard) -> Loaded[Engine]:
    return load("whisper-x", target, "ctranslate2", lambda device: Engine(device, card))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "target", [Target("auto", True), Target("cuda", True), Target("auto"), Target("cuda")]
)
def test_a_gpu_that_works_is_used_and_has_run_a_window(target: Target, card: FakeCard) -> None:
    found = loaded(target, card)
    assert (found.engine.device, found.engine.windows) == ("cuda", 1)
    assert asdict(found.placement) == {
        "asked": target.asked,
        "device": "cuda",
        "compute_type": "float16",
        "fallback": None,
        "gpu": NAME,
        "gpu_total_mb": TOTAL_MB,
        "gpu_used_before_mb": 1000,
        "gpu_used_after_mb": 3500,
        "gpu_free_mb": TOTAL_MB - 3500,
    }


@pytest.mark.parametrize("target", [Target("cpu", True), Target("auto", False)])
def test_where_no_gpu_is_meant_the_cpu_is_used_without_a_warning(
    target: Target, card: FakeCard, caplog: pytest.LogCaptureFixture
) -> None:
    found = loaded(target, card)
    assert (found.engine.device, found.engine.windows) == ("cpu", 1)
    assert (found.placement.device, found.placement.compute_type) == ("cpu", "int8")
    assert found.placement.fallback is None
    assert found.placement.gpu is None
    assert warnings(caplog) == []


def test_auto_outside_ray_without_a_gpu_is_the_cpu_without_a_warning(
    card: FakeCard, caplog: pytest.LogCaptureFixture
) -> None:
    card.driver = False
    assert loaded(Target("auto"), card).engine.device == "cpu"
    assert warnings(caplog) == []


def test_cpu_never_touches_the_gpu(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", None)
    assert loaded(Target("cpu", True), card).engine.device == "cpu"


def test_auto_with_a_missing_library_is_the_cpu_with_one_warning_that_names_it(
    no_cublas: FakeCard, caplog: pytest.LogCaptureFixture
) -> None:
    found = loaded(Target("auto", True), no_cublas)
    assert (found.engine.device, found.engine.windows) == ("cpu", 1)
    assert found.placement.fallback == CUBLAS_MISSING
    assert warnings(caplog) == [
        f"Device fallback from cuda to cpu: model whisper-x: {CUBLAS_MISSING}"
    ]


def test_auto_with_an_assigned_gpu_that_is_not_visible_is_the_cpu_with_one_warning(
    card: FakeCard, caplog: pytest.LogCaptureFixture
) -> None:
    card.driver = False
    found = loaded(Target("auto", True), card)
    assert found.placement.fallback == NOT_VISIBLE
    assert warnings(caplog) == [f"Device fallback from cuda to cpu: model whisper-x: {NOT_VISIBLE}"]


def test_auto_with_a_first_window_that_fails_is_the_cpu_with_one_warning(
    card: FakeCard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failure = ModelUnavailable("the model failed", detail="/models/x")
    failure.__cause__ = RuntimeError("CUDA failed with error\nno kernel image is available")
    monkeypatch.setattr(Engine, "failure", failure)
    found = loaded(Target("auto", True), card)
    reason = "RuntimeError: CUDA failed with error no kernel image is available"
    assert (found.engine.device, found.placement.fallback) == ("cpu", reason)
    assert warnings(caplog) == [f"Device fallback from cuda to cpu: model whisper-x: {reason}"]


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_model_that_does_not_fit_the_gpu_now_is_no_reason_for_the_cpu(
    asked: Asked, card: FakeCard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failure = RuntimeError("CUDA failed with error out of memory")
    monkeypatch.setattr(Engine, "failure", failure)
    with pytest.raises(OutOfMemory, match="does not suffice to load model whisper-x") as error:
        loaded(Target(asked, True), card)
    assert error.value.detail == f"RuntimeError: {failure}"
    assert warnings(caplog) == []


def test_a_model_that_does_not_fit_the_memory_of_the_machine_is_reported_alike() -> None:
    def build(device: Device) -> Engine:
        raise MemoryError

    with pytest.raises(OutOfMemory):
        load("whisper-x", Target("cpu"), "ctranslate2", build)


@pytest.mark.parametrize(
    ("assigned", "driver", "library", "reason"),
    [
        (False, True, True, NOT_ASSIGNED),
        (True, False, True, NOT_VISIBLE),
        (None, False, True, NOT_VISIBLE),
        (True, True, False, CUBLAS_MISSING),
    ],
)
def test_cuda_that_cannot_be_had_is_refused_with_the_reason(
    assigned: bool | None,
    driver: bool,
    library: bool,
    reason: str,
    no_cublas: FakeCard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    no_cublas.driver = driver
    if library:
        no_cublas.install("cublas", "libcublas.so.12")
    with pytest.raises(ModelUnavailable) as error:
        loaded(Target("cuda", assigned), no_cublas)
    assert str(error.value) == (
        f"model whisper-x does not run on the GPU: device is cuda, and {reason}"
    )
    assert error.value.message == "model whisper-x does not run on the GPU"
    assert warnings(caplog) == []


def test_cuda_with_a_first_window_that_fails_is_refused_with_its_error(
    card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "failure", RuntimeError("no kernel image is available"))
    with pytest.raises(ModelUnavailable, match="RuntimeError: no kernel image is available"):
        loaded(Target("cuda", True), card)


def test_missing_model_files_are_no_fault_of_the_gpu(card: FakeCard) -> None:
    def build(device: Device) -> Engine:
        raise ModelNotInstalled(f"no files for {device}")

    with pytest.raises(ModelNotInstalled, match="no files for cuda"):
        load("whisper-x", Target("auto", True), "ctranslate2", build)


def test_a_model_that_fails_on_either_device_raises_the_error_of_the_cpu(card: FakeCard) -> None:
    def build(device: Device) -> Engine:
        raise ModelUnavailable(f"broken on {device}")

    with pytest.raises(ModelUnavailable, match="broken on cpu"):
        load("whisper-x", Target("auto", True), "ctranslate2", build)


def test_each_load_is_one_line_of_the_log_with_the_device_and_the_memory(
    card: FakeCard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loaded(Target("auto", True), card)
    loaded(Target("auto", False), card)
    assert [record.getMessage() for record in caplog.records] == [
        "model whisper-x is loaded: device asked for auto, using cuda, compute type float16, "
        f"{NAME}: 1000 MiB in use before, 3500 after, {TOTAL_MB - 3500} of {TOTAL_MB} free",
        "model whisper-x is loaded: device asked for auto, using cpu, compute type int8",
    ]


def test_a_gpu_that_nvml_does_not_know_is_used_without_its_memory(card: FakeCard) -> None:
    card.nvml = False
    placement = loaded(Target("auto", True), card).placement
    assert (placement.device, placement.gpu, placement.gpu_total_mb) == ("cuda", None, None)


def test_hidden_gpus_do_not_count(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.visible()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu.visible()
    assert gpu.state() is None


def test_without_a_driver_there_is_no_gpu(card: FakeCard) -> None:
    card.driver = False
    assert not gpu.visible()
    assert gpu.state() is None
