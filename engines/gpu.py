"""The GPU of this process, as the CUDA driver and NVML report it, without an inference library."""

import contextlib
import ctypes
import uuid
from dataclasses import dataclass
from typing import Any

import pynvml

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and its memory in MiB now, in use by all processes of the machine together."""

    name: str
    total_mb: int
    used_mb: int
    free_mb: int


def visible() -> bool:
    """Whether this process sees a GPU; the CUDA driver honours ``CUDA_VISIBLE_DEVICES``."""
    return _first_device() is not None


def state() -> Gpu | None:
    """The first GPU that this process sees; None without one, or where NVML does not know it."""
    first = _first_device()
    if first is None:
        return None
    driver, device = first
    identity = (ctypes.c_char * 16)()
    if driver.cuDeviceGetUuid_v2(identity, device) != 0:
        return None
    number = uuid.UUID(bytes=bytes(identity))
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        # NVML counts all GPUs of the machine; the number that CUDA has for one is another.
        for kind in ("GPU", "MIG"):
            with contextlib.suppress(pynvml.NVMLError):
                return _read(pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{number}"))
        return None
    finally:
        pynvml.nvmlShutdown()


def _read(handle: Any) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        pynvml.nvmlDeviceGetName(handle),
        memory.total // _MIB,
        memory.used // _MIB,
        memory.free // _MIB,
    )


def _first_device() -> tuple[Any, ctypes.c_int] | None:
    """The CUDA driver, and its handle of the first GPU that it shows to this process."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device = ctypes.c_int(0), ctypes.c_int(0)
    if (
        driver.cuInit(0) != 0
        or driver.cuDeviceGetCount(ctypes.byref(count)) != 0
        or count.value == 0
        or driver.cuDeviceGet(ctypes.byref(device), 0) != 0
    ):
        return None
    return driver, device
