"""What the unit tests share."""

import logging

import pytest
from hypothesis import settings

from tests.unit.fake_models import FakeModels
from tests.unit.live_service import serving

# The duration of an example is no property of the code: a busy machine must not fail a test.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")


@pytest.fixture
async def quick():
    """The service with fakes."""
    async with serving(FakeModels()) as service:
        yield service


@pytest.fixture
async def demo():
    """The service with the demo models."""
    async with serving() as service:
        yield service


@pytest.fixture(autouse=True)
def _log_without_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing `deployments` sends the records to Serve; here caplog gets them, at the root."""
    logger = logging.getLogger("speechgraph")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    logger.setLevel(logging.NOTSET)  # forgets which levels were enabled
