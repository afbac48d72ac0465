"""The layout that docs/architecture.md describes: file names are unique, files are short."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SHORT = (
    "speech",
    "engines",
    "infra",
    "api",
    "gateways",
    "configs",
    "deployments",
    "graphs",
    "clients",
    "benchmarks",
)
"""Folders whose files have at most MAX_LINES lines."""

MAX_LINES = 400

SEEN_FROM_TWO_LAYERS = {
    "diarization": "the deployment of a family, the recipe of its demo model",
    "emotion": "the engine and the deployment of a family, the recipe of its demo model",
    "errors": "the errors, how HTTP answers them, how OpenAI's API does",
    "events": "the events of a stream, the events of OpenAI's realtime API",
    "jobs": "the routes, the deployment",
    "key_limits": "the counter, its deployment",
    "live": "the route, the command that calls it",
    "registry": "the sessions of a process, the streams that the sockets open",
    "requests": "one per dialect",
    "responses": "one per dialect",
    "routes": "one per dialect",
    "whisper": "the deployment of a family, the recipe of its demo model, the measurement",
}
"""Base names of more than one file, and what each of these files is."""


def modules(repository: Path, *folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in (repository / folder).rglob("*.py"):
            if path.name != "__init__.py":
                yield path.relative_to(repository)


def test_a_base_name_is_used_once_unless_it_is_listed(repository: Path) -> None:
    paths = defaultdict(list)
    for path in modules(repository, *SHORT, "models", "docs"):
        paths[path.stem].append(str(path))
    twice = {stem: where for stem, where in paths.items() if len(where) > 1}
    assert {stem: twice[stem] for stem in twice.keys() - SEEN_FROM_TWO_LAYERS} == {}
    assert SEEN_FROM_TWO_LAYERS.keys() - twice == set(), "listed, but used once"


def test_no_file_of_the_service_and_its_tools_is_longer_than_400_lines(repository: Path) -> None:
    long = {
        str(path): lines
        for path in modules(repository, *SHORT)
        if (lines := len((repository / path).read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}
