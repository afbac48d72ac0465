"""The wheel in bare environments, one for each extra: everything that an extra promises works."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from configs.catalogue import Catalogue
from tests.e2e.launched import launched

pytestmark = pytest.mark.timeout(600)

UV = Path(sys.executable).parent / "uv"
EXTRAS = ("", "whisper", "vosk", "emotion", "diarization", "diarization-light", "postgres", "s3")
"""``vosk`` is another name of ``onnx-asr``, which the test of a service installs."""
WITHOUT_TORCH = "whisper,onnx-asr,emotion,diarization-light"


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, which therefore is complete."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([UV, "build", "--quiet", "--out-dir", folder, repository], check=True)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, extra: str, repository: Path, folder: Path) -> Path:
    """The Python of a new environment with the wheel and one extra, in the tried versions."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    target = f"{wheel}[{extra}]" if extra else str(wheel)
    versions = repository / "requirements.lock"
    command = [UV, "pip", "install", "--quiet", "--python", python, "--constraint", versions]
    subprocess.run([*command, target], check=True)
    return python


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_alone_does_what_it_promises(
    extra: str, wheel: Path, repository: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    python = install(wheel, extra, repository, tmp_path / "environment")
    database = [request.getfixturevalue("postgres")] if extra == "postgres" else []
    script = Path(__file__).with_name("installed.py")
    run = subprocess.run(
        [python, "-P", script, extra, repository, *database],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_service_runs_in_the_installation_without_torch(
    wheel: Path, repository: Path, tmp_path: Path
) -> None:
    assert f".[{WITHOUT_TORCH}]" in (repository / "README.md").read_text(encoding="utf-8")
    python = install(wheel, WITHOUT_TORCH, repository, tmp_path / "environment")
    entry = Catalogue.load().find("demo-vosk")
    assert entry is not None
    described = entry.model_dump(exclude_defaults=True)
    described["source"] = {"path": str(repository / "models" / "demo" / "demo-vosk")}
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(yaml.safe_dump({"models": [described]}), encoding="utf-8")
    args = {
        "catalogue": str(catalogue),
        "ingress": {"default_transcriber": "demo-vosk", "resources": {"num_cpus": 0.1}},
        "decoder": {"resources": {"num_cpus": 0.2}},
        "onnx_asr": {"default_model": "demo-vosk"},
    }
    application = {"name": "speech", "route_prefix": "/", "import_path": "graphs.speech:build"}
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"applications": [application | {"args": args}]}))
    audio = (repository / "models" / "demo" / "audio" / "dialogue-en.flac").read_bytes()
    with launched([str(python), "-m", "graphs.launch", str(config)], tmp_path) as addresses:
        answer = httpx.post(
            f"{addresses['service']}/v1/process",
            files={"audio": ("audio", audio)},
            data={"request_json": '{"settings": {"tasks": ["transcribe"]}}'},
            timeout=120,
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"]["tra"]["segments"]
    torch = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in torch.stderr
