from typing import Any

from graphs.device_table import table

CPU: dict[str, Any] = {
    "model_name": "demo-whisper",
    "asked": "auto",
    "device": "cpu",
    "compute_type": "int8_float32",
    "encoder": "ctranslate2",
    "fallback": None,
    "gpu": None,
    "gpu_total_mb": None,
    "gpu_used_before_mb": None,
    "gpu_used_after_mb": None,
    "gpu_free_mb": None,
}
GPU: dict[str, Any] = {
    "model_name": "demo-pyannote",
    "asked": "cuda",
    "device": "cuda",
    "compute_type": "float32",
    "encoder": None,
    "fallback": None,
    "gpu": "NVIDIA H100",
    "gpu_total_mb": 81559,
    "gpu_used_before_mb": 1000,
    "gpu_used_after_mb": 3500,
    "gpu_free_mb": 78059,
}


def test_models_on_the_cpu_have_the_columns_of_the_cpu() -> None:
    assert table([CPU]) == (
        "  model         asked  device  compute type\n  demo-whisper  auto   cpu     int8_float32\n"
    )


def test_a_model_on_a_gpu_has_its_name_and_its_memory_before_and_after() -> None:
    assert table([CPU, GPU]).splitlines() == [
        "  model          asked  device  compute type  encoder      GPU          total MiB"
        "  used before  used after  free",
        "  demo-whisper   auto   cpu     int8_float32  ctranslate2  -            -        "
        "  -            -           -",
        "  demo-pyannote  cuda   cuda    float32       -            NVIDIA H100  81559    "
        "  1000         3500        78059",
    ]


def test_the_reason_of_a_fallback_is_below_the_model() -> None:
    reason = "libcublas.so.12 is missing; `make setup GPU=1` brings it"
    lines = table([{**CPU, "fallback": reason}]).splitlines()
    assert lines[2:] == [f"      not on the GPU: {reason}"]


def test_without_a_loaded_model_there_is_no_table() -> None:
    assert table([]) == ""
