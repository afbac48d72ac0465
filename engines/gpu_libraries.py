"""The libraries that an inference library needs on a GPU: found, loaded, or named as missing.

NVIDIA's packages for Python put them into folders that the dynamic linker does not search. One that
is loaded by its path is found by its name from then on.
"""

import contextlib
import ctypes
import importlib.util
import io
import logging
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(f"speechgraph.{__name__}")

Backend = Literal["ctranslate2", "onnxruntime", "sherpa_onnx", "torch"]


class LibraryMissing(Exception):
    """A library is missing; the message names it and the command that brings it."""


def load_libraries(backend: Backend) -> None:
    """Load what ``backend`` needs for a GPU, before it asks for it. Raises LibraryMissing."""
    match backend:
        case "ctranslate2":
            # Its wheel has CUDA itself, and opens this file when it first multiplies.
            _open("libcublas.so.12", "nvidia-cublas-cu12")
        case "onnxruntime":
            _load_onnxruntime()
        case "sherpa_onnx":
            _check_sherpa_onnx()
        case "torch":
            _check_torch()


def _open(library: str, package: str, opening: frozenset[str] = frozenset()) -> None:
    """Load a library and, by path, those that it needs and the dynamic linker does not find."""
    while True:
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            return
        except OSError as error:
            missing = str(error).split(":")[0]  # the linker begins with the file that it lacks
            path = _in_nvidia_packages(missing)
            if path is None or missing in opening:
                raise LibraryMissing(
                    f"{missing} is missing ({error}); {_brought_by(package)}"
                ) from error
            opening |= {missing}
            _open(str(path), package, opening)


def _in_nvidia_packages(name: str) -> Path | None:
    """The file of that name in the packages ``nvidia-*``, which share one folder."""
    found = importlib.util.find_spec("nvidia")
    folders = (found and found.submodule_search_locations) or ()
    return next((path for folder in folders for path in Path(folder).glob(f"*/lib/{name}")), None)


def _load_onnxruntime() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise LibraryMissing(
            "onnxruntime is installed without CUDA; "
            f"{_brought_by('onnxruntime-gpu', instead_of='onnxruntime')}"
        )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls(msvc=False)  # looks only where onnxruntime itself is installed
    logger.debug("onnxruntime.preload_dlls: %s", printed.getvalue())
    # Opened here, as onnxruntime itself writes to stderr what is missing, and runs on the CPU.
    folder = Path(str(onnxruntime.__file__)).parent / "capi"
    providers = (str(folder / f"libonnxruntime_providers_{part}.so") for part in ("shared", "cuda"))
    for library in (*providers, "libcudnn.so.9"):
        _open(library, "onnxruntime-gpu[cuda,cudnn]")


def _check_sherpa_onnx() -> None:
    found = importlib.util.find_spec("sherpa_onnx")
    if found is not None and found.origin is not None:
        library = Path(found.origin).parent / "lib/libonnxruntime_providers_cuda.so"
        if not library.exists():
            raise LibraryMissing(
                "sherpa-onnx is installed without CUDA; the wheels with it are at "
                "https://k2-fsa.github.io/sherpa/onnx/cuda.html"
            )


def _check_torch() -> None:
    try:
        import torch
    except ImportError:
        return  # the engine reports it
    version: Any = torch.version
    if version.cuda is None:
        raise LibraryMissing(f"torch is installed without CUDA; {_brought_by('torch')}")


def _brought_by(package: str, instead_of: str = "") -> str:
    place = f" in place of {instead_of}" if instead_of else ""
    return f"`make setup GPU=1` brings it, or `pip install {package}`{place}"
