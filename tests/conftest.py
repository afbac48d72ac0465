"""Fixtures of all tests, and the marker of each tier."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from configs.settings import SERVE_ENVIRONMENT, TELEMETRY_OFF
from tests.postgres import NewDatabase, running_postgres

# Ray reads these when it is first imported.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "0")
# Each process of a cluster exports its metrics ten times a second by default.
os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "1000")
os.environ.update(TELEMETRY_OFF | SERVE_ENVIRONMENT)

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the tier, which is the name of its folder."""
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


class TierScheduling(LoadScopeScheduling):
    """What runs in one of the processes of ``pytest -n``: a tier, of the unit tests a file.

    The integration tests share one Ray cluster, and the e2e tests the port of `make serve`.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        tier = file.split("/")[1]
        return file if tier == "unit" else tier


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TierScheduling:
    """Schedule by tier."""
    return TierScheduling(config, log)


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
def postgres_server() -> Iterator[NewDatabase]:
    """Makes empty databases."""
    with running_postgres() as new_database:
        yield new_database


@pytest.fixture
def postgres(postgres_server: NewDatabase) -> str:
    """The URL of an empty database that nobody else uses."""
    return postgres_server()
