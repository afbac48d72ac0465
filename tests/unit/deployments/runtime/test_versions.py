"""An update restarts the replicas whose arguments differ, and no others."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from ray.serve._private.build_app import build_app

from configs.settings import SpeechArgs
from deployments.runtime.versions import digest
from graphs.speech import build


@pytest.fixture
def args(repository: Path) -> dict[str, Any]:
    """The arguments of the demo, with recognisers in replicas of their own."""
    config = yaml.safe_load((repository / "configs/demo.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = config["applications"][0]["args"]
    found["live"] |= {"placement": "replicas"}
    return found


def versions(args: dict[str, Any]) -> dict[str, str | None]:
    """The version of each deployment where Serve gives all of them the same one."""
    found = {}
    for deployment in build_app(build(SpeechArgs(**args)), name="").deployments:
        config = deployment._deployment_config
        config.version = "that of the application"
        found[deployment.name] = config.version
    return found


@pytest.mark.parametrize(
    ("family", "change", "restarted"),
    [
        ("onnx_asr", {"max_models": 2}, {"OnnxAsr"}),
        ("ingress", {"max_upload_bytes": 1}, {"Ingress"}),
        ("whisper", {"timeout_s": 60}, {"Whisper", "Ingress", "JobRunner"}),
        ("jobs", {"lease_s": 20}, {"JobRunner", "Ingress"}),
        ("decoder", {"lifecycle": {"drain_timeout_s": 5}}, {"Decoder"}),
        ("onnx_asr", {"scaling": {"max_replicas": 4}}, set()),
        ("ingress", {"scaling": {"max_replicas": 4}}, set()),
        ("live", {"scaling": {"max_replicas": 4}}, set()),
    ],
)
def test_a_change_restarts_the_deployments_that_it_concerns(
    args: dict[str, Any], family: str, change: dict[str, Any], restarted: set[str]
) -> None:
    before = versions(args)
    args[family] |= change
    after = versions(args)
    assert {name for name in before if before[name] != after[name]} == restarted


def test_another_catalogue_restarts_what_loads_models(args: dict[str, Any], tmp_path: Path) -> None:
    before = versions(args)
    catalogue = Path("configs/models.yaml").read_text(encoding="utf-8")
    (tmp_path / "models.yaml").write_text(catalogue.replace("memory_mb: 60", "memory_mb: 70"))
    after = versions(args | {"catalogue": str(tmp_path / "models.yaml")})
    assert {name for name in before if before[name] == after[name]} == {"Decoder"}


def test_another_version_of_the_package_restarts_everything(
    args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions(args)
    monkeypatch.setattr("deployments.runtime.versions.version", lambda package: "9.9")
    after = versions(args)
    assert not {name for name in before if before[name] == after[name]}


def test_a_secret_is_part_of_the_version_and_not_readable_in_it() -> None:
    first, second = digest([SecretStr("one")]), digest([SecretStr("two")])
    assert first != second
    assert "one" not in first
