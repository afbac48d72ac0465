"""The command that checks a Serve config before Ray sees it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from graphs.validate import main, problems

CONFIGS = ["serve_config.yaml", "configs/demo.yaml", "configs/cpu.yaml", "configs/gpu.yaml"]


@pytest.fixture
def config(repository: Path) -> Any:
    """configs/demo.yaml as data."""
    return yaml.safe_load((repository / "configs/demo.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_that_we_ship_is_valid(repository: Path, name: str) -> None:
    assert problems(repository / name) == []


def test_serve_config_shows_every_deployment_and_what_may_change_live(repository: Path) -> None:
    config = yaml.safe_load((repository / "serve_config.yaml").read_text(encoding="utf-8"))
    (application,) = config["applications"]
    families = {"ingress", "decoder", "whisper", "vosk", "emotion", "diarization"}
    assert families <= set(application["args"])
    assert all("scaling" in application["args"][f] for f in families)
    assert any("user_config" in d for d in application["deployments"])


@pytest.mark.parametrize(
    ("place", "field", "value", "complaint"),
    [
        ("args.whisper", "defualt_model", "x", "applications[speech].args.whisper.defualt_model"),
        ("args.whisper", "default_model", "whisper-huge", "no model 'whisper-huge'"),
        ("args.whisper", "default_model", "demo-vosk", "whisper: no model 'demo-vosk'"),
        ("args.whisper.resources", "num_cpus", -1, "args.whisper.resources.num_cpus"),
        ("args.ingress", "default_transcriber", "nobody", "'nobody' is not served"),
        ("args.ingress", "openai_aliases", {"fast": "nobody"}, "'fast' means 'nobody'"),
        ("args.ingress", "whisper_rest_aliases", {"base": "nobody"}, "'base' means 'nobody'"),
        ("args.ingress.sessions", "speaker_model", "nobody", "'nobody' is no speaker model"),
        ("args.ingress.sessions", "speaker_model", "demo-pyannote", "is no speaker model"),
        ("args.vosk", "scaling", {"min_replicas": 3}, "min_replicas is above max_replicas"),
        ("", "import_path", "graphs.speech:bild", "graphs.speech"),
        ("", "deployments", [{"name": "Wisper"}], "no deployment 'Wisper'"),
        ("", "deployments", [{"name": "Whisper", "num_replicaz": 3}], "num_replicaz: unknown"),
        (
            "",
            "deployments",
            [{"name": "Whisper", "user_config": {"max_model": 1}}],
            "user_config.max_model",
        ),
        ("", "deployments", [{"name": "Decoder", "user_config": {}}], "takes no user_config"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    config: Any, tmp_path: Path, place: str, field: str, value: Any, complaint: str
) -> None:
    target = config["applications"][0]
    for step in filter(None, place.split(".")):
        target = target.setdefault(step, {})
    target[field] = value
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    found = problems(file)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    "name",
    ["Ingress", "Decoder", "Whisper", "Vosk", "Live", "Emotion", "Diarization", "JobRunner"],
)
def test_every_deployment_of_the_graph_can_be_overridden(
    config: Any, tmp_path: Path, name: str
) -> None:
    (application,) = config["applications"]
    application["args"]["live"]["placement"] = "replicas"
    application["deployments"] = [{"name": name, "max_ongoing_requests": 7}]
    file = tmp_path / "overridden.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert problems(file) == []


def test_a_deployment_that_this_graph_does_not_start_cannot_be_overridden(
    config: Any, tmp_path: Path
) -> None:
    (application,) = config["applications"]
    assert application["args"]["live"].get("placement", "local") == "local"
    application["deployments"] = [{"name": "Live", "max_ongoing_requests": 7}]
    file = tmp_path / "overridden.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    (problem,) = problems(file)
    assert "no deployment 'Live'" in problem


def test_the_command_fails_on_a_broken_file_and_names_it(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("applications: 3", encoding="utf-8")
    assert main([str(repository / "configs/demo.yaml"), str(broken)]) == 1
    out, err = capsys.readouterr()
    assert "demo.yaml: ok" in out
    assert str(broken) in err
