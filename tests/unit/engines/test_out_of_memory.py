"""Out of memory, as the libraries of the engines report it, and what then helps."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engines.out_of_memory import free_caches, in_smaller_batches, is_out_of_memory
from speech.errors import (
    EngineFailed,
    InvalidRequest,
    ModelUnavailable,
    OutOfMemory,
    Overloaded,
    SpeechError,
)

ONNX = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running "
REPORTS = [
    "CUDA failed with error out of memory",
    "cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED",
    "failed to allocated memory",
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 4.00 GiB of "
    "which 0 bytes is free.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other "
    "API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)",
    f"{ONNX}Conv node. Name:'/conv/Conv' Status Message: bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to "
    "allocate memory for requested buffer of size 939524096",
    f"{ONNX}MatMul node. Status Message: bfc_arena.cc:353 Available memory of 1024 is smaller than "
    "requested bytes of 2048",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc(...);",
    "std::bad_alloc",
    "[Errno 12] Cannot allocate memory",
]


@pytest.mark.parametrize("report", REPORTS)
def test_the_reports_of_the_libraries_are_recognised_also_behind_the_error_of_an_engine(
    report: str,
) -> None:
    error = RuntimeError(report)
    failed = EngineFailed("the model failed")
    failed.__cause__ = error
    assert is_out_of_memory(error)
    assert is_out_of_memory(failed)
    assert is_out_of_memory(EngineFailed(f"sherpa-onnx failed: {report}"))
    assert is_out_of_memory(ModelUnavailable("the model does not load", detail=report))


def test_an_array_that_numpy_cannot_allocate_is_an_out_of_memory() -> None:
    with pytest.raises(MemoryError) as error:
        np.empty(2**60, np.uint8)
    assert is_out_of_memory(error.value)


def test_a_tensor_that_torch_cannot_allocate_is_an_out_of_memory() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("max_new_tokens is too large"),
        RuntimeError("CUDA failed with error an illegal memory access was encountered"),
        RuntimeError("cuBLAS failed with status CUBLAS_STATUS_NOT_SUPPORTED"),
        RuntimeError("Library libcublas.so.12 is not found or cannot be loaded"),
        InvalidRequest("language 'out of memory' is not known to this model"),
        EngineFailed("the model returned probabilities that are not finite"),
        Overloaded("the queue is full"),
    ],
)
def test_other_errors_are_not(error: Exception | None) -> None:
    assert not is_out_of_memory(error)


def test_an_out_of_memory_is_an_overload_of_its_own_code() -> None:
    error = OutOfMemory("the memory does not suffice", 5.0, "CUDA out of memory")
    assert isinstance(error, Overloaded)
    assert (error.code, error.retry_after_s) == ("out_of_memory", 5.0)
    assert is_out_of_memory(error)


@pytest.mark.parametrize(("fitting", "tried"), [(8, [8]), (3, [8, 4, 2]), (1, [8, 4, 2, 1])])
def test_a_batch_is_halved_until_it_fits(
    fitting: int, tried: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []

    def run(size: int) -> int:
        sizes.append(size)
        if size > fitting:
            raise RuntimeError("CUDA failed with error out of memory")
        return size

    assert in_smaller_batches(8, run) == tried[-1]
    assert sizes == tried
    assert [record.args[0] for record in caplog.records if record.args] == tried[:-1]


@pytest.mark.parametrize(
    ("error", "tried"),
    [(MemoryError(), [4, 2, 1]), (SpeechError("cancelled"), [4]), (ValueError("no"), [4])],
)
def test_the_error_of_the_smallest_batch_and_every_other_one_is_raised(
    error: Exception, tried: list[int]
) -> None:
    sizes: list[int] = []

    def run(size: int) -> None:
        sizes.append(size)
        raise error

    with pytest.raises(type(error)):
        in_smaller_batches(4, run)
    assert sizes == tried


class FakeCuda:
    """The caching allocator of torch, with 300 bytes of which 100 are in use."""

    def __init__(self, *, initialized: bool = True) -> None:
        self.initialized = initialized
        self.reserved = 300

    def is_initialized(self) -> bool:
        return self.initialized

    def memory_reserved(self) -> int:
        return self.reserved

    def empty_cache(self) -> None:
        self.reserved = 100


def test_the_blocks_that_torch_keeps_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=FakeCuda()))
    assert [free_caches(), free_caches()] == [200, 0]


def test_torch_is_not_initialized_to_free_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(initialized=False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert (free_caches(), cuda.reserved) == (0, 300)
    monkeypatch.delitem(sys.modules, "torch")
    assert free_caches() == 0
