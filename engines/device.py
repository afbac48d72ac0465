"""The device of a model, decided by trying: the model is loaded there and runs one window.

An engine is constructed for one device and fails where that does not work. :func:`load` chooses the
device, and falls back to the CPU or refuses.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from engines import gpu
from engines.gpu_libraries import Backend, load_libraries
from engines.out_of_memory import is_out_of_memory
from speech.errors import InvalidRequest, ModelUnavailable, OutOfMemory, SpeechError

logger = logging.getLogger(f"speechgraph.{__name__}")

Device = Literal["cpu", "cuda"]
Asked = Literal["auto", "cpu", "cuda"]


class WarmEngine(Protocol):
    """What every engine offers beside its work."""

    @property
    def compute_type(self) -> str:
        """The number format that it computes in, such as float16; right once it has warmed up."""
        ...

    def warm_up(self) -> None:
        """Run a short window through the whole model; raises what fails."""
        ...


E = TypeVar("E", bound=WarmEngine)
E_co = TypeVar("E_co", bound=WarmEngine, covariant=True)


@dataclass(frozen=True, slots=True)
class Target:
    """The device that the settings ask for, and whether there is a GPU for it.

    ``assigned``: whether Ray assigned a GPU to this replica; None outside Ray.
    """

    asked: Asked
    assigned: bool | None = None

    @property
    def tries_gpu(self) -> bool:
        """Whether a model is tried on a GPU, or reported because it cannot be."""
        if self.asked != "auto":
            return self.asked == "cuda"
        return gpu.visible() if self.assigned is None else self.assigned


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs, and why. Memory is that of the GPU in MiB, None on the CPU.

    ``fallback`` is why it does not run on the GPU that it should; None otherwise. ``gpu_used_*``
    are of all processes together, before the load and after the first window.
    """

    asked: Asked
    device: Device
    compute_type: str
    fallback: str | None = None
    gpu: str | None = None
    gpu_total_mb: int | None = None
    gpu_used_before_mb: int | None = None
    gpu_used_after_mb: int | None = None
    gpu_free_mb: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded(Generic[E_co]):
    """A model that has run one window, and where it runs."""

    engine: E_co
    placement: Placement


def loaded_row(loaded: Loaded[Any]) -> dict[str, Any]:
    """The fields of a loaded model for the statistics of a replica, as they are now."""
    engine = loaded.engine
    return {
        **asdict(loaded.placement),
        "wrapper_class": type(engine).__name__,
        "encoder": getattr(engine, "encoder", None),  # Whisper has one
        "compute_type": engine.compute_type,  # Whisper may have changed it since the load
    }


def load(model: str, target: Target, backend: Backend, build: Callable[[Device], E]) -> Loaded[E]:
    """A warmed-up engine on the device of ``target``; ``build`` constructs it for a device.

    "auto" falls back to the CPU with one warning. "cuda" does not: it raises ModelUnavailable with
    the same reason. Raises what ``build`` raises on the CPU, and on either device InvalidRequest,
    such as ModelNotInstalled, and OutOfMemory: a shortage passes, a fallback would stay.
    """
    try:
        return _load(model, target, backend, build)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"the memory does not suffice to load model {model} now", 5.0, _reason(error)
        ) from error


def _load(model: str, target: Target, backend: Backend, build: Callable[[Device], E]) -> Loaded[E]:
    fallback = None
    if target.tries_gpu:
        before = gpu.state()
        fallback = _obstacle(target, backend)
        if fallback is None:
            try:
                engine = _warm(build("cuda"))
            except Exception as error:
                if isinstance(error, InvalidRequest) or is_out_of_memory(error):
                    raise
                fallback = _reason(error)
                logger.debug("model %s fails on the GPU", model, exc_info=True)
            else:
                placement = _on_gpu(target, engine, before)
                _log(model, placement)
                return Loaded(engine, placement)
        if target.asked == "cuda":
            raise ModelUnavailable(
                f"model {model} does not run on the GPU", detail=f"device is cuda, and {fallback}"
            )
        logger.warning("Device fallback from cuda to cpu: model %s: %s", model, fallback)
        gc.collect()  # what was loaded on the GPU before it failed
    engine = _warm(build("cpu"))
    placement = Placement(target.asked, "cpu", engine.compute_type, fallback)
    _log(model, placement)
    return Loaded(engine, placement)


def _obstacle(target: Target, backend: Backend) -> str | None:
    """Why there is no need to try the GPU."""
    if target.assigned is False:
        return "no GPU is assigned to this replica (resources.num_gpus is 0)"
    if not gpu.visible():
        return "the CUDA driver (libcuda.so.1) shows no GPU to this process"
    try:
        load_libraries(backend)
    except Exception as error:
        return str(error)
    return None


def _warm(engine: E) -> E:
    engine.warm_up()
    return engine


def _reason(error: BaseException) -> str:
    """The error of the library, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if isinstance(error, SpeechError) else f"{type(error).__name__}: {text}"


def _on_gpu(target: Target, engine: WarmEngine, before: gpu.Gpu | None) -> Placement:
    after = gpu.state()
    if before is None or after is None:
        return Placement(target.asked, "cuda", engine.compute_type)
    return Placement(
        asked=target.asked,
        device="cuda",
        compute_type=engine.compute_type,
        gpu=after.name,
        gpu_total_mb=after.total_mb,
        gpu_used_before_mb=before.used_mb,
        gpu_used_after_mb=after.used_mb,
        gpu_free_mb=after.free_mb,
    )


def _log(model: str, placement: Placement) -> None:
    logger.info(
        "model %s is loaded: device asked for %s, using %s, compute type %s%s",
        model,
        placement.asked,
        placement.device,
        placement.compute_type,
        ""
        if placement.gpu is None
        else f", {placement.gpu}: {placement.gpu_used_before_mb} MiB in use before, "
        f"{placement.gpu_used_after_mb} after, {placement.gpu_free_mb} of "
        f"{placement.gpu_total_mb} free",
    )
