"""The locks that `make setup` installs from: complete, from no index in particular, and in step."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

X86_64_LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
ARM_LINUX = X86_64_LINUX | {"platform_machine": "aarch64"}
ONLY_FOR_A_GPU = {"nvidia-cublas-cu12", "nvidia-cuda-nvrtc-cu12", "onnxruntime-gpu"}


def entries(lock: Path) -> list[tuple[Requirement, list[str]]]:
    """The requirements of a lock, each with its hashes."""
    text = re.sub(r" *#.*", "", lock.read_text(encoding="utf-8")).replace("\\\n", "")
    parts = (line.split("--hash=sha256:") for line in text.splitlines() if line)
    return [(Requirement(first), [value.strip() for value in hashes]) for first, *hashes in parts]


def installed(lock: Path, platform: dict[str, str]) -> dict[str, str]:
    """The version of each package that an installation on ``platform`` gets."""
    return {
        requirement.name: str(requirement.specifier)
        for requirement, _ in entries(lock)
        if requirement.marker is None or requirement.marker.evaluate(platform)
    }


@pytest.fixture(params=["requirements.lock", "requirements-gpu.lock"])
def lock(request: pytest.FixtureRequest, repository: Path) -> Path:
    return repository / str(request.param)


def test_every_package_of_a_lock_has_one_version_and_hashes(lock: Path) -> None:
    found = entries(lock)
    assert len(found) > 100
    for requirement, hashes in found:
        (version,) = requirement.specifier
        assert version.operator == "=="
        assert hashes
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)


def test_a_lock_names_no_index_and_no_address(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert "index-url" not in text


def test_the_gpu_lock_differs_from_the_other_in_what_a_gpu_needs(repository: Path) -> None:
    cpu = installed(repository / "requirements.lock", X86_64_LINUX)
    gpu = installed(repository / "requirements-gpu.lock", X86_64_LINUX)
    assert gpu.keys() - cpu.keys() == ONLY_FOR_A_GPU
    assert cpu.keys() - gpu.keys() == {"onnxruntime"}, "both packages own the same files"
    assert gpu.items() - cpu.items() == {(name, gpu[name]) for name in ONLY_FOR_A_GPU}


def test_the_gpu_lock_installs_the_same_as_the_other_where_a_gpu_package_has_no_wheel(
    repository: Path,
) -> None:
    cpu = installed(repository / "requirements.lock", ARM_LINUX)
    assert installed(repository / "requirements-gpu.lock", ARM_LINUX) == cpu


def commands(checkout: Path, *variables: str) -> str:
    """What `make setup` would run where nothing is up to date."""
    command = ["make", "--dry-run", "--always-make", "setup", *variables]
    given = {"GPU", "TORCH", "MAKEFLAGS"}  # to the make that may run these tests
    environment = {name: value for name, value in os.environ.items() if name not in given}
    run = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    return (run.stdout + run.stderr).replace("\\\n", "")


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """What `make setup` reads, without an environment."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-gpu.lock"):
        shutil.copy(repository / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    return tmp_path


def test_setup_installs_the_lock_that_its_variables_choose(checkout: Path) -> None:
    assert "pip sync --quiet --compile-bytecode requirements.lock" in commands(checkout)
    assert "compile-bytecode requirements-gpu.lock" in commands(checkout, "GPU=1")
    assert "GPU=1 needs the CUDA build" in commands(checkout, "GPU=1", "TORCH=cpu")


@pytest.mark.parametrize(
    ("installed", "variables", "planned"),
    [
        ("1-default", [], "compile-bytecode requirements-gpu.lock"),
        ("1-default", ["GPU=0"], "compile-bytecode requirements.lock"),
        ("1-default", ["TORCH=cpu"], "--torch-backend=cpu"),
        ("0-cpu", [], "--torch-backend=cpu"),
        ("0-cpu", ["TORCH=default"], "compile-bytecode requirements.lock"),
        ("0-cpu", ["GPU=1"], "compile-bytecode requirements-gpu.lock"),
    ],
)
def test_what_is_installed_stays_until_another_is_asked_for(
    checkout: Path, installed: str, variables: list[str], planned: str
) -> None:
    (checkout / ".venv" / f".installed-{installed}").touch()
    assert planned in commands(checkout, *variables)


def test_torch_without_cuda_replaces_torch_and_its_libraries_alone(
    repository: Path, checkout: Path
) -> None:
    planned = commands(checkout, "TORCH=cpu").splitlines()
    for line in planned:
        if line.startswith("sed"):
            subprocess.run(line, shell=True, cwd=checkout, check=True)
    before = installed(repository / "requirements.lock", X86_64_LINUX)
    others = installed(checkout / ".venv" / "others.lock", X86_64_LINUX)
    left_out = before.keys() - others.keys()
    assert others.items() == before.items() - {(name, before[name]) for name in left_out}
    libraries = {name for name in before if name.startswith(("nvidia-", "cuda-"))}
    reads_the_driver = "nvidia-ml-py"
    assert left_out == libraries - {reads_the_driver} | {"torch", "torchaudio", "triton"}
    pins = (checkout / ".venv" / "torch.txt").read_text(encoding="utf-8").split()
    assert pins == [f"torch{before['torch']}", f"torchaudio{before['torchaudio']}"]
    assert any("--torch-backend=cpu -r .venv/torch.txt" in line for line in planned)
