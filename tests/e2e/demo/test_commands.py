"""The commands of the README, run in the checkout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.launched import eventually

pytestmark = pytest.mark.timeout(900)


def test_make_demo_prints_both_dialogues_with_speakers_and_emotions(repository: Path) -> None:
    def make(target: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["make", "--silent", target, f"PYTHON={sys.executable}"],
            cwd=repository,
            env={**os.environ, "VIRTUAL_ENV": "of-something-else"},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    setup = make("setup")  # apart from the demo, as package indexes have warnings of their own
    assert setup.returncode == 0, setup.stdout + setup.stderr
    run = make("demo")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert run.stdout.startswith("speechgraph is up after ")
    pages = run.stdout.split("── ")[1:]
    assert [page.split(":")[0] for page in pages] == ["dialogue-ru.flac", "dialogue-en.flac"]
    for page, language in zip(pages, ("ru", "en"), strict=True):
        assert f"language {language}" in page
        assert {"SPEAKER_00", "SPEAKER_01"} <= set(re.findall(r"SPEAKER_\d\d", page))
        assert re.search(r"\b(angry|sad|neutral|positive)\b", page)
        for model in ("demo-whisper", "demo-pyannote", "demo-gigaam-emo"):
            assert model in page


def test_make_serve_prints_the_service_and_the_dashboard(serving: dict[str, str]) -> None:
    assert httpx.get(f"{serving['service']}/health").json()["status"] == "healthy"
    assert "Ray Dashboard" in httpx.get(serving["dashboard"]).text


def test_the_curl_line_of_the_readme_gets_a_merged_transcript(
    serving: dict[str, str], repository: Path
) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    line = re.search(r"^curl (?:.|\n)+?/v1/process$", readme, re.MULTILINE)
    assert line is not None
    command = line[0].replace("http://127.0.0.1:8000", serving["service"])
    answer = subprocess.run(
        ["bash", "-c", f"{command} --silent --show-error --max-time 120"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(answer.stdout)["result"]
    assert {s["speaker"] for s in result["tra"]["segments"]} == {"SPEAKER_00", "SPEAKER_01"}


def test_prometheus_gets_the_seconds_of_every_stage(
    serving: dict[str, str], repository: Path
) -> None:
    audio = repository / "models" / "demo" / "audio" / "dialogue-en.flac"
    settings = {"settings": {"tasks": ["transcribe", "emotion"], "tra": {"model": "demo-vosk"}}}
    answer = httpx.post(
        f"{serving['service']}/v1/process",
        files={"audio": ("audio", audio.read_bytes())},
        data={"request_json": json.dumps(settings)},
        timeout=120,
    )
    assert answer.status_code == 200

    def stages() -> set[str]:
        targets = httpx.get(f"{serving['dashboard']}/api/prometheus/sd").json()[0]["targets"]
        pages = [httpx.get(f"http://{target}/metrics").text for target in targets]
        counted = re.compile(r'^ray_speechgraph_stage_seconds_count\{.*stage="(\w+)"', re.MULTILINE)
        return {stage for page in pages for stage in counted.findall(page)}

    eventually(lambda: {"decode", "transcribe", "emotion", "merge"} <= stages())


def test_the_api_page_works_without_the_internet(serving: dict[str, str]) -> None:
    page = httpx.get(f"{serving['service']}/docs").text
    linked = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert linked
    for address in linked:
        assert not address.startswith(("http:", "https:", "//")), address
        asset = httpx.get(httpx.URL(serving["service"]).join(address))
        assert asset.status_code == 200


def test_serve_deploy_changes_user_config_without_restarting_a_replica(
    serving: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    demo = (repository / "configs" / "demo.yaml").read_text(encoding="utf-8")
    port = httpx.URL(serving["service"]).port
    serve = Path(sys.executable).parent / "serve"

    def deploy(max_models: int) -> None:
        config = tmp_path / "config.yaml"
        override = f"{{name: OnnxAsr, user_config: {{max_models: {max_models}}}}}"
        live = f"    deployments:\n      - {override}\n"
        config.write_text(demo.replace("port: 8000", f"port: {port}") + live, encoding="utf-8")
        subprocess.run(
            [str(serve), "deploy", str(config), "-a", serving["dashboard"]],
            check=True,
            capture_output=True,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )

    def loaded() -> set[str]:
        stats = httpx.get(f"{serving['service']}/cache/stats", timeout=30).json()
        return {m["model_name"] for m in stats} & {"demo-vosk", "demo-gigaam"}

    def replicas(max_models: int) -> set[str]:
        """Running OnnxAsr replicas, once the application runs with that setting."""
        body = httpx.get(f"{serving['dashboard']}/api/serve/applications/").json()
        application = body["applications"]["speech"]
        recognisers = application["deployments"].get("OnnxAsr")
        if recognisers is None or application["status"] != "RUNNING":
            return set()
        if recognisers["deployment_config"].get("user_config") != {"max_models": max_models}:
            return set()
        return {r["replica_id"] for r in recognisers["replicas"] if r["state"] == "RUNNING"}

    deploy(max_models=2)
    eventually(lambda: len(replicas(max_models=2)) == 1)
    before = replicas(max_models=2)
    eventually(lambda: loaded() == {"demo-vosk", "demo-gigaam"})
    deploy(max_models=1)
    eventually(lambda: len(loaded()) == 1)
    eventually(lambda: replicas(max_models=1) == before)
