"""The command that checks a Serve config before Ray sees it."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.exceptions import RayServeException

from engines import gpu
from graphs.speech import build
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
    families = {"ingress", "decoder", "whisper", "onnx_asr", "emotion", "diarization"}
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
        (
            "args.whisper.resources",
            "num_cpus",
            "two",
            "resources.num_cpus: Input should be a valid",
        ),
        ("args.whisper.resources", "num_cpus", math.nan, "resources.num_cpus: Input should be a f"),
        ("args.whisper.resources", "num_cpus", math.inf, "resources.num_cpus: Input should be a f"),
        ("args.whisper.resources", "num_cpus", 0.00001, "below the least share that Ray gives"),
        ("args.whisper.resources", "num_gpus", 0.00001, "below the least share that Ray gives"),
        ("args.whisper.resources", "num_gpus", 1.5, "num_gpus: above 1 has to be a whole number"),
        ("args.whisper.resources", "memory_mb", 0, "args.whisper.resources.memory_mb"),
        ("args.whisper.resources", "label_selector", {"a b": "c"}, "Invalid label key name `a b`"),
        ("args.ingress", "default_transcriber", "nobody", "'nobody' is not served"),
        (
            "args.ingress",
            "asr",
            {"language": "klingon"},
            "ingress.asr.language: language 'klingon'",
        ),
        ("args.ingress", "openai_aliases", {"fast": "nobody"}, "'fast' means 'nobody'"),
        ("args.ingress", "whisper_rest_aliases", {"base": "nobody"}, "'base' means 'nobody'"),
        ("args.ingress.sessions", "speaker_model", "nobody", "'nobody' is no speaker model"),
        ("args.ingress.sessions", "speaker_model", "demo-pyannote", "is no speaker model"),
        ("args.onnx_asr", "scaling", {"min_replicas": 3}, "min_replicas is above max_replicas"),
        ("args.jobs", "webhook_secret", "whsec_@", "args.jobs.webhook_secret: is not base64"),
        ("args.jobs", "webhook_secret", "", "args.jobs.webhook_secret: is empty"),
        ("args.jobs", "database", "mysql://host/db", "args.jobs.database: is no URL that begins"),
        ("args", "catalogue", "configs/cpu.yaml", "cpu.yaml.models: Field required"),
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
        ("", "deployments", [{"name": "OnnxAsr"}, {"name": "OnnxAsr"}], "'OnnxAsr' is given twice"),
        ("", "deployments", [{"name": "Vosk"}], "no deployment 'Vosk', which is OnnxAsr now"),
        ("args", "vosk", {"default_model": "demo-vosk"}, "vosk is the former name of onnx_asr"),
        ("", "route_prefix", "speech", "must start with a forward slash"),
        ("", "route_prefix", "/speech/", "may not end with a trailing '/'"),
        ("", "runtime_env", {"env_vars": {"SPEECHGRAPH_RELEASE": 0.2}}, "but the value 0.2 is"),
        ("", "runtime_env", {"env_var": {}}, "runtime_env.env_var: unknown field"),
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
    ("options", "complaint"),
    [
        ({"ray_actor_options": {"num_gpus": 1.5}}, "above 1 has to be a whole number of GPUs"),
        ({"ray_actor_options": {"num_cpus": 0.00001}}, "cannot go beyond 0.0001"),
        ({"ray_actor_options": {"num_cpus": -1}}, "num_cpus: Input should be greater"),
        ({"ray_actor_options": {"resources": {"CPU": 1}}}, "Use the 'num_cpus' and 'num_gpus'"),
        (
            {"autoscaling_config": {"min_replicas": 3, "max_replicas": 1}},
            "max_replicas (1) must be",
        ),
        ({"max_replicas_per_node": 0}, "Invalid max_replicas_per_node 0"),
        ({"request_router_config": {"request_router_class": "nowhere.Router"}}, "nowhere"),
    ],
)
def test_an_override_that_serve_cannot_apply_is_named(
    config: Any, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    config["applications"][0]["deployments"] = [{"name": "OnnxAsr", **options}]
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    (problem,) = problems(file)
    assert complaint in problem


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "Input should be a valid dictionary"),
        (b"- speech", "Input should be a valid dictionary"),
        (b"applications: [", "expected the node content"),
        (bytes(range(256)), "codec can't decode"),
        (b"applications: []", "applications: is empty, which deletes all applications that run"),
        (b"applications: null", "applications: Input should be a valid list"),
        (b"applications: [null]", "applications.0: Input should be a valid dictionary"),
        (b"applications: []\napplications: []", "line 2: 'applications' is given twice"),
    ],
)
def test_a_file_that_is_no_serve_config_is_rejected_in_one_line(
    tmp_path: Path, text: bytes, complaint: str
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(text)
    (problem,) = problems(file)
    assert complaint in problem
    assert "\n" not in problem


def test_a_port_that_does_not_exist_is_rejected(config: Any, tmp_path: Path) -> None:
    config["http_options"]["port"] = 99_999
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert problems(file) == ["http_options.port: 99999 is no port"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "speech", "route_prefix": "/b"}, 'application "speech"'),
        ({"name": "b", "route_prefix": "/"}, 'route prefix "/"'),
    ],
)
def test_two_applications_of_one_name_or_route_are_rejected(
    config: Any, tmp_path: Path, change: dict[str, str], complaint: str
) -> None:
    config["applications"].append(config["applications"][0] | change)
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    (problem,) = problems(file)
    assert complaint in problem


def test_a_failed_build_has_a_message_of_one_line_that_serve_shows_without_a_traceback(
    config: Any,
) -> None:
    args = config["applications"][0]["args"]
    args["whisper"] |= {"defualt_model": "x", "concurrency": 0}
    with pytest.raises(RayServeException) as raised:  # of others Serve shows the traceback
        build(args)
    assert str(raised.value) == (
        "args.whisper.concurrency: Input should be greater than or equal to 1; "
        "args.whisper.defualt_model: Extra inputs are not permitted"
    )
    del args["whisper"]["defualt_model"]
    args["whisper"] |= {"default_model": "nobody", "concurrency": 1}
    with pytest.raises(RayServeException, match=r"args: whisper: no model 'nobody' .*") as raised:
        build(args)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    ["Ingress", "Decoder", "Whisper", "OnnxAsr", "Live", "Emotion", "Diarization", "JobRunner"],
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


@pytest.mark.parametrize(
    ("override", "endless"),
    [
        ({"max_replicas_per_node": 1}, True),
        ({"max_replicas_per_node": 2}, False),
        ({"max_replicas_per_node": 2, "autoscaling_config": {"max_replicas": 8}}, True),
        ({"max_replicas_per_node": 1, "max_surge_percent": 0}, False),
    ],
)
def test_an_override_under_which_an_update_would_never_end_is_refused(
    config: Any, tmp_path: Path, override: dict[str, Any], endless: bool
) -> None:
    (application,) = config["applications"]
    application["deployments"] = [{"name": "Ingress", **override}]
    file = tmp_path / "endless.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    place = "applications[speech].deployments[Ingress]: an update would wait for ever"
    assert [place in problem for problem in problems(file)] == [True] * endless


def test_the_files_of_default_and_preloaded_models_are_checked_where_asked(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config["applications"][0]["args"]
    args["models_dir"] = str(tmp_path)
    args["onnx_asr"]["preload"] = ["gigaam-v3-ctc"]
    args["diarization"]["default_model"] = "pyannote-community-1"
    args["live"]["default_model"] = "vosk-model-small-streaming-ru"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main([str(file)]) == 0
    assert main([str(file), "--offline"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" is not on this server ")[0] for line in lines] == [
        f"{file}: applications[speech].args.{place}: model {model}"
        for place, model in (
            ("onnx_asr", "gigaam-v3-ctc"),
            ("diarization", "pyannote-community-1"),
            ("live", "vosk-model-small-streaming-ru"),
        )
    ]


def test_the_command_fails_on_a_broken_file_and_names_it(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("applications: 3", encoding="utf-8")
    assert main([str(repository / "configs/demo.yaml"), str(broken)]) == 1
    out, err = capsys.readouterr()
    assert "demo.yaml: ok" in out
    assert str(broken) in err


def test_the_memory_of_one_gpu_is_added_up_and_compared_with_the_card(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(repository / "configs/gpu.yaml")
    monkeypatch.setattr(gpu, "state", lambda: None)
    assert main([path]) == 0
    out, err = capsys.readouterr()
    assert (f"{path}: ok\n{path}: up to " in out, err) == (True, "")
    assert main([path, "--gpu-memory-mb", "16000"]) == 0
    assert capsys.readouterr() == (out, "")
    assert main([path, "--gpu-memory-mb", "8000"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{path}: ok\n"
    assert err.startswith(f"{path}: warning: up to ")
    assert "It has 8000: " in err
    monkeypatch.setattr(gpu, "state", lambda: gpu.Gpu("a card", 6000, 0, 6000))
    assert main([path]) == 0
    assert "It has 6000: " in capsys.readouterr().err


def test_the_memory_of_a_gpu_is_no_subject_of_a_config_without_one(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(repository / "configs/cpu.yaml")
    assert main([path, "--gpu-memory-mb", "1"]) == 0
    assert capsys.readouterr() == (f"{path}: ok\n", "")
