"""The launcher names the deployment that does not start, and why."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.timeout(600)

Launch = Callable[[Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def launch(repository: Path, tmp_path: Path) -> Launch:
    """Starts a graph of decoder, ingress and OnnxAsr, whose model is in a given directory."""

    def run(directory: Path) -> "subprocess.CompletedProcess[str]":
        catalogue = yaml.safe_load((repository / "configs/models.yaml").read_text(encoding="utf-8"))
        (entry,) = (model for model in catalogue["models"] if model["id"] == "demo-vosk")
        entry["source"] = {"path": str(directory)}
        (tmp_path / "models.yaml").write_text(yaml.safe_dump(catalogue), encoding="utf-8")
        config = yaml.safe_load((repository / "configs/demo.yaml").read_text(encoding="utf-8"))
        config["applications"][0]["args"] = {
            "catalogue": str(tmp_path / "models.yaml"),
            "offline": True,
            "ingress": {"default_transcriber": "demo-vosk"},
            "onnx_asr": {"default_model": "demo-vosk", "device": "cpu"},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-m", "graphs.launch", str(tmp_path / "config.yaml")],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return run


def test_a_model_file_that_does_not_load_is_named(
    launch: Launch, repository: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(repository / "models/demo/demo-vosk", broken)
    (broken / "model.onnx").write_bytes(b"no network")
    run = launch(broken)
    assert (run.returncode, run.stdout) == (1, "")
    (line,) = run.stderr.splitlines()
    assert line.startswith("the graph did not come up: OnnxAsr: speech.errors.ModelUnavailable: ")
    assert f"{broken}/model.onnx" in line
