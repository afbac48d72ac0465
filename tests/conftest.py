"""Fixtures of all tests, and the marker of each tier."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.settings import SERVE_ENVIRONMENT
from tests.postgres import running_postgres

# Ray reads these when it is first imported.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "0")
os.environ.update(SERVE_ENVIRONMENT)

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the tier, which is the name of its folder."""
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real recordings that are not part of the repository."""
    folder = Path(os.environ.get("SPEECHGRAPH_ASSETS", REPOSITORY.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder} (set SPEECHGRAPH_ASSETS)")
    return folder


@pytest.fixture(scope="session")
def demo_audio(repository: Path) -> Path:
    """The audio of the demo pack."""
    return repository / "models" / "demo" / "audio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a database that nobody else uses."""
    with running_postgres() as url:
        yield url
