"""Fixtures of all tests, and the marker of each tier."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.settings import SERVE_ENVIRONMENT, TELEMETRY_OFF
from tests.postgres import running_postgres

# Ray reads these when it is first imported.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "0")
os.environ.update(TELEMETRY_OFF | SERVE_ENVIRONMENT)

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, the name of its folder, and with what it shares a process.

    The integration tests share one Ray cluster, the e2e tests the port of `make serve`, and the
    unit tests of a file their fixtures.
    """
    for item in items:
        path = item.path.relative_to(TESTS)
        tier = path.parts[0]
        item.add_marker(tier)
        item.add_marker(pytest.mark.xdist_group(str(path) if tier == "unit" else tier))


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
