"""A GPU that is not there: the CUDA driver, NVML, and CUDA's libraries as the linker finds them."""

import ctypes
import importlib.util
import os
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

MIB = 1024**2
NAME = "NVIDIA H100 80GB HBM3"
TOTAL_MB = 81559
_UUID = uuid.UUID("5f3c2a10-0000-4000-8000-00000000000a")
_CUDA_LIBRARIES = ("libcu", "libnvrtc", "libonnxruntime_providers")


class FakeCard:
    """One GPU. ``driver``: whether its driver is installed. ``used_mb``: memory in use on it.

    No CUDA library is found by its name; :meth:`install` puts one into a package ``nvidia-*``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
        self.driver = True
        self.nvml = True
        self.used_mb = 1000
        self.opened: list[tuple[str, int]] = []
        self.needs: dict[str, str] = {}
        """By the name of a library, the name of the one that it needs."""
        self._site = site
        self._loaded: set[str] = set()
        self._real, self._real_spec = ctypes.CDLL, importlib.util.find_spec
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(ctypes, "CDLL", self._open)
        monkeypatch.setattr(importlib.util, "find_spec", self._spec)
        monkeypatch.setattr(pynvml, "nvmlInit", self._init)
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", self._handle)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: NAME)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", self._memory)

    def install(self, package: str, library: str) -> Path:
        """The file of a library in the folder of a package, such as ``cublas``."""
        path = self._site / "nvidia" / package / "lib" / library
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def _open(self, name: str, mode: int = ctypes.DEFAULT_MODE) -> Any:
        if name == "libcuda.so.1":
            if not self.driver:
                raise _not_found(name)
            return SimpleNamespace(
                cuInit=lambda flags: 0,
                cuDeviceGetCount=self._count,
                cuDeviceGet=lambda device, index: 0,
                cuDeviceGetUuid_v2=self._uuid,
            )
        file = Path(name).name
        if not file.startswith(_CUDA_LIBRARIES):
            return self._real(name, mode)
        if file == name and name not in self._loaded:
            raise _not_found(name)
        needed = self.needs.get(file)
        if needed is not None and needed not in self._loaded:
            raise _not_found(needed)
        self.opened.append((name, mode))
        self._loaded.add(file)
        return SimpleNamespace()

    def _spec(self, name: str, package: str | None = None) -> Any:
        if name == "nvidia":  # the packages that are installed here are others
            return SimpleNamespace(submodule_search_locations=[str(self._site / "nvidia")])
        return self._real_spec(name, package)

    def _count(self, count: Any) -> int:
        count._obj.value = 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else 1
        return 0

    def _uuid(self, identity: Any, device: Any) -> int:
        identity[:] = _UUID.bytes
        return 0

    def _init(self) -> None:
        if not self.nvml:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def _handle(self, name: str) -> str:
        if name != f"GPU-{_UUID}":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return name

    def _memory(self, handle: str) -> Any:
        free_mb = TOTAL_MB - self.used_mb
        return SimpleNamespace(total=TOTAL_MB * MIB, used=self.used_mb * MIB, free=free_mb * MIB)


def _not_found(name: str) -> OSError:
    return OSError(f"{name}: cannot open shared object file: No such file or directory")
