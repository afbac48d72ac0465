import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled

from configs.catalogue import REPOSITORY_ROOT, ModelEntry
from engines.model_files import find, locate, main, pull
from speech.errors import ModelNotInstalled, ModelUnavailable, SpeechError

OLD, NEW = "a" * 40, "b" * 40
REPO = "owner/asr"


class Hub(BaseHTTPRequestHandler):
    """What fetching a snapshot needs of a hub, with two commits of one model."""

    files: ClassVar = {
        "model.bin": {OLD: b"old weights", NEW: b"new weights"},
        "notes.md": {NEW: b"x"},
    }
    gated = False
    broken_file: str | None = None
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if self.gated:
            return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if path.startswith(f"/api/models/{REPO}/tree/"):
            commit = path.rsplit("/", 1)[1]
            return self.reply_json(
                [
                    {"type": "file", "path": name, "size": len(commits[commit]), "oid": name}
                    for name, commits in self.files.items()
                    if commit in commits
                ]
            )
        if path.startswith(f"/api/models/{REPO}"):
            commit = path.rsplit("/", 1)[1] if "/revision/" in path else NEW
            return self.reply_json({"id": REPO, "sha": commit, "siblings": []})
        commit, name = path.removeprefix(f"/{REPO}/resolve/").split("/")
        if name == self.broken_file:
            return self.reply(403, b"")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{commit}{name}"'}
        return self.reply(200, self.files[name][commit], headers)

    do_HEAD = do_GET  # noqa: N815

    def reply_json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub of our own on this machine."""

    class ThisHub(Hub):
        asked: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), ThisHub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", url)
    yield ThisHub
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither switch of the hub outlives a test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def entry(**source: Any) -> ModelEntry:
    return ModelEntry.model_validate(
        {
            "id": "asr-model",
            "family": "whisper",
            "format": "ctranslate2",
            "licence": "MIT",
            "memory_mb": 1,
            "source": source,
        }
    )


def test_a_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    local = entry(path=str(tmp_path / "weights"))
    assert locate(local, tmp_path / "hub", offline=False) == tmp_path / "weights"


def test_a_relative_path_counts_from_the_repository() -> None:
    assert locate(entry(path="configs"), Path("x"), offline=True) == REPOSITORY_ROOT / "configs"


def test_a_missing_local_directory_is_looked_for_under_the_models_directory(tmp_path: Path) -> None:
    (tmp_path / "asr-model").mkdir()
    missing = entry(path=str(tmp_path / "nowhere"))
    assert locate(missing, tmp_path, offline=True) == tmp_path / "asr-model"


def test_a_missing_local_directory_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotInstalled, match=r"asr-model.*nowhere"):
        locate(entry(path=str(tmp_path / "nowhere")), tmp_path, offline=False)


def test_files_put_under_the_models_directory_by_hand_need_no_hub(tmp_path: Path) -> None:
    (tmp_path / "asr-model").mkdir()
    assert locate(entry(repo=REPO), tmp_path, offline=True) == tmp_path / "asr-model"


def test_a_model_is_fetched_at_its_pinned_commit(hub: type[Hub], tmp_path: Path) -> None:
    directory = locate(entry(repo=REPO, revision=OLD), tmp_path, offline=False)
    assert directory == tmp_path / "asr-model"
    assert (directory / "model.bin").read_bytes() == b"old weights"
    assert (directory / ".origin").read_text() == f"{REPO}@{OLD}\n"


def test_without_a_pin_the_commit_that_came_is_recorded_and_kept(
    hub: type[Hub], tmp_path: Path
) -> None:
    first = locate(entry(repo=REPO), tmp_path, offline=False)
    hub.asked.clear()
    assert locate(entry(repo=REPO), tmp_path, offline=False) == first
    assert (first / ".origin").read_text() == f"{REPO}@{NEW}\n"
    assert hub.asked == []


def test_only_the_named_files_are_fetched(hub: type[Hub], tmp_path: Path) -> None:
    directory = pull(entry(repo=REPO, files=("*.bin",)), tmp_path)
    assert sorted(p.name for p in directory.iterdir()) == [".origin", "model.bin"]


def test_a_new_pin_fetches_again(hub: type[Hub], tmp_path: Path) -> None:
    pull(entry(repo=REPO, revision=OLD), tmp_path)
    directory = locate(entry(repo=REPO, revision=NEW), tmp_path, offline=False)
    assert (directory / "model.bin").read_bytes() == b"new weights"


def test_the_wrong_commit_counts_as_missing_when_offline(hub: type[Hub], tmp_path: Path) -> None:
    pull(entry(repo=REPO, revision=OLD), tmp_path)
    with pytest.raises(ModelNotInstalled, match="make models-pull MODEL=asr-model"):
        locate(entry(repo=REPO, revision=NEW), tmp_path, offline=True)


def test_an_interrupted_pull_never_looks_complete_and_is_taken_up_again(
    hub: type[Hub], tmp_path: Path
) -> None:
    hub.broken_file = "notes.md"
    with pytest.raises(ModelUnavailable, match="asr-model"):
        locate(entry(repo=REPO), tmp_path, offline=False)
    assert not (tmp_path / "asr-model").exists()
    hub.broken_file = None
    hub.asked.clear()
    directory = locate(entry(repo=REPO), tmp_path, offline=False)
    assert (directory / "notes.md").read_bytes() == b"x"


def test_offline_never_asks_the_hub(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(ModelNotInstalled, match="make models-pull MODEL=asr-model"):
        locate(entry(repo=REPO), tmp_path, offline=True)
    assert hub.asked == []


def test_offline_forbids_the_hub_to_the_libraries_of_the_process(
    hub: type[Hub], tmp_path: Path
) -> None:
    locate(entry(path=str(tmp_path)), tmp_path, offline=True)
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info(REPO)
    assert os.environ["HF_HUB_OFFLINE"] == "1", "for a library that is imported later"
    assert hub.asked == []


def test_the_hubs_own_offline_switch_is_honoured(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotInstalled, match="switched off"):
        locate(entry(repo=REPO), tmp_path, offline=False)
    assert hub.asked == []


def test_the_error_of_a_gated_model_names_its_licence_page(hub: type[Hub], tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(ModelNotInstalled, match=r"accepting its licence.*owner/asr.*HF_TOKEN"):
        locate(entry(repo=REPO, gated=True), tmp_path, offline=False)


@pytest.mark.parametrize("source", [{"path": "{tmp}/nowhere"}, {"repo": REPO}])
def test_a_client_gets_no_path_of_a_missing_model(tmp_path: Path, source: dict[str, str]) -> None:
    named = {name: value.replace("{tmp}", str(tmp_path)) for name, value in source.items()}
    with pytest.raises(SpeechError) as missing:
        locate(entry(**named), tmp_path, offline=True)
    assert str(tmp_path) not in missing.value.message
    assert str(tmp_path) in str(missing.value), "the operator gets it from the log"


def test_files_are_found_without_the_hub(hub: type[Hub], tmp_path: Path) -> None:
    assert find(entry(repo=REPO, revision=OLD), tmp_path) is None
    there = pull(entry(repo=REPO, revision=OLD), tmp_path)
    hub.asked.clear()
    assert find(entry(repo=REPO, revision=OLD), tmp_path) == there
    assert find(entry(repo=REPO, revision=NEW), tmp_path) is None
    assert find(entry(path=str(there)), tmp_path) == there
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached_is_an_unavailable_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelUnavailable, match="could not be fetched"):
        locate(entry(repo=REPO), tmp_path, offline=False)


def catalogue_file(directory: Path, model: ModelEntry) -> Path:
    path = directory / "models.yaml"
    path.write_text(yaml.safe_dump({"models": [model.model_dump(mode="json")]}))
    return path


def test_the_command_fetches_and_prints_the_directory_of_each_model(
    hub: type[Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = catalogue_file(tmp_path, entry(repo=REPO))
    common = ["--catalogue", str(catalogue), "--models-dir", str(tmp_path / "hub")]
    assert main(["asr-model", *common]) == 0
    assert main(["--all", *common]) == 0
    line = f"asr-model\t{tmp_path}/hub/asr-model\t{REPO}@{NEW}\n"
    assert capsys.readouterr().out == line * 2


def test_the_command_fails_when_a_model_cannot_be_fetched(
    tmp_path: Path,
) -> None:
    catalogue = catalogue_file(tmp_path, entry(repo=REPO))
    where = ["--catalogue", str(catalogue), "--models-dir", str(tmp_path / "hub")]
    done = subprocess.run(
        [sys.executable, "-m", "engines.model_files", "asr-model", *where],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "make models-pull MODEL=asr-model" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["unknown-model"], ["demo-whisper", "--all"]])
def test_the_command_refuses_what_it_cannot_mean(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
