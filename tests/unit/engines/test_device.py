import logging

import pytest

from engines.device import cuda_visible, resolve


def yes() -> bool:
    return True


def no() -> bool:
    return False


def test_auto_takes_the_gpu_that_was_assigned() -> None:
    assert resolve("auto", [0], yes) == "cuda"


def test_auto_without_an_assigned_gpu_takes_the_cpu_and_warns_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert resolve("auto", [], yes) == "cpu"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_auto_outside_ray_goes_by_what_the_library_can_use() -> None:
    assert resolve("auto", None, yes) == "cuda"
    assert resolve("auto", None, no) == "cpu"


@pytest.mark.parametrize(
    ("device", "gpu_ids", "usable"),
    [("auto", [0], no), ("cuda", [0], no), ("cuda", [], yes), ("cuda", None, no)],
)
def test_a_gpu_that_was_expected_and_is_not_there_is_one_warning_and_the_cpu(
    device: str, gpu_ids: list[int] | None, usable: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve(device, gpu_ids, usable) == "cpu"  # type: ignore[arg-type]
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("Device fallback from cuda to cpu")


def test_the_log_names_the_requested_and_the_used_device(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    resolve("auto", [], yes)
    assert "asked for auto, using cpu" in caplog.text


def test_cpu_never_asks_for_a_gpu() -> None:
    def asked() -> bool:
        raise AssertionError

    assert resolve("cpu", [0], asked) == "cpu"


def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not cuda_visible()
