"""The device of a model: CPU or CUDA, by setting, assignment and availability."""

import ctypes
import logging
from collections.abc import Callable, Sequence
from typing import Literal

logger = logging.getLogger(f"speechgraph.{__name__}")


def resolve(
    device: Literal["auto", "cpu", "cuda"],
    gpu_ids: Sequence[object] | None,
    usable: Callable[[], bool] | None = None,
) -> Literal["cpu", "cuda"]:
    """The device to load a model on; never fails, falls back to the CPU with a warning.

    ``gpu_ids`` are the GPUs that Ray assigned to the replica, None outside Ray. ``usable`` returns
    whether the library of the engine can use a GPU; the default queries the CUDA driver, which
    honours ``CUDA_VISIBLE_DEVICES``. Imports no inference library.
    """
    if device == "cpu":
        logger.info("device: asked for cpu, using cpu")
        return "cpu"
    assigned = gpu_ids is None or len(gpu_ids) > 0
    if assigned and (usable or cuda_visible)():
        logger.info("device: asked for %s, using cuda", device)
        return "cuda"
    # A GPU was expected if the setting requires one, or if Ray assigned one to this replica.
    if device == "cuda" or gpu_ids:
        reason = "the library finds no usable GPU" if assigned else "no GPU is assigned to it"
        logger.warning("Device fallback from cuda to cpu: this process asked for a GPU, %s", reason)
    logger.info("device: asked for %s, using cpu", device)
    return "cpu"


def cuda_visible() -> bool:
    """Whether at least one GPU is visible to this process."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return False
    return count.value > 0
