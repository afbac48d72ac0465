"""What the tests of live sockets share."""

import pytest

from tests.unit.live_service import Ears, serving


@pytest.fixture
async def quick():
    """The service with fakes."""
    async with serving(Ears()) as service:
        yield service


@pytest.fixture
async def demo():
    """The service with the demo models."""
    async with serving() as service:
        yield service
