"""Which library a backend lacks, with files that the dynamic linker finds or does not find."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.gpu_libraries import LibraryMissing, load_libraries
from tests.unit.fake_card import FakeCard


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCard:
    return FakeCard(monkeypatch, tmp_path)


def test_ctranslate2_gets_cublas_from_its_package_whatever_folder_the_package_is_in(
    card: FakeCard,
) -> None:
    path = card.install("cublas", "libcublas.so.12")
    load_libraries("ctranslate2")
    assert (str(path), ctypes.RTLD_GLOBAL) in card.opened
    assert ctypes.CDLL("libcublas.so.12") is not None  # as CTranslate2 opens it then


def test_a_library_that_a_library_needs_is_loaded_before_it(card: FakeCard) -> None:
    card.install("cublas", "libcublas.so.12")
    card.install("cublas", "libcublasLt.so.12")
    card.needs["libcublas.so.12"] = "libcublasLt.so.12"
    load_libraries("ctranslate2")
    names = [Path(name).name for name, _ in card.opened]
    assert names == ["libcublasLt.so.12", "libcublas.so.12", "libcublas.so.12"]


def test_cublas_of_another_version_does_not_help_and_the_command_is_named(card: FakeCard) -> None:
    card.install("cu13", "libcublas.so.13")
    with pytest.raises(LibraryMissing) as error:
        load_libraries("ctranslate2")
    assert str(error.value) == (
        "libcublas.so.12 is missing (libcublas.so.12: cannot open shared object file: No such file "
        "or directory); `make setup GPU=1` brings it, or `pip install nvidia-cublas-cu12`"
    )


def test_a_file_that_is_there_and_does_not_load_is_no_endless_loop(card: FakeCard) -> None:
    card.install("cublas", "libcublas.so.12")
    card.needs["libcublas.so.12"] = "libcublas.so.12"
    with pytest.raises(LibraryMissing, match=r"^libcublas\.so\.12 is missing"):
        load_libraries("ctranslate2")


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu in place of onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda msvc: None)


def test_onnxruntime_without_cuda_names_the_package_that_has_it(
    card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    providers = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    with pytest.raises(LibraryMissing) as error:
        load_libraries("onnxruntime")
    assert str(error.value) == (
        "onnxruntime is installed without CUDA; `make setup GPU=1` brings it, or "
        "`pip install onnxruntime-gpu` in place of onnxruntime"
    )


def test_onnxruntime_gets_what_its_provider_needs_from_other_folders(
    card: FakeCard, with_cuda: None
) -> None:
    card.needs["libonnxruntime_providers_cuda.so"] = "libcublasLt.so.13"
    paths = [
        card.install("cu13", "libcublasLt.so.13"),
        card.install("cudnn", "libcudnn.so.9"),
    ]
    load_libraries("onnxruntime")
    assert {str(path) for path in paths} <= {name for name, _ in card.opened}


def test_onnxruntime_without_cudnn_names_it(card: FakeCard, with_cuda: None) -> None:
    with pytest.raises(LibraryMissing) as error:
        load_libraries("onnxruntime")
    assert str(error.value) == (
        "libcudnn.so.9 is missing (libcudnn.so.9: cannot open shared object file: No such file or "
        "directory); `make setup GPU=1` brings it, or `pip install onnxruntime-gpu[cuda,cudnn]`"
    )


def test_torch_without_cuda_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        LibraryMissing, match=r"torch is installed without CUDA; `make setup GPU=1`"
    ):
        load_libraries("torch")


def test_sherpa_onnx_without_cuda_names_where_the_wheels_with_it_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
    with pytest.raises(LibraryMissing, match="sherpa-onnx is installed without CUDA; the wheels"):
        load_libraries("sherpa_onnx")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libonnxruntime_providers_cuda.so").touch()
    load_libraries("sherpa_onnx")
