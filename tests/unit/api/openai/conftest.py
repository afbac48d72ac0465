"""What the tests of OpenAI's audio routes share."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.unit.fake_service import FakeService
from tests.unit.openai_service import TRANSCRIPT, Api, serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[tuple[FakeService, Api]]:
    """One server for all tests: to start one takes longer than any of them."""
    service = FakeService()
    async with serving(service) as api:
        yield service, api


@pytest.fixture
def service(shared: tuple[FakeService, Api]) -> FakeService:
    """The service as new."""
    service, _ = shared
    vars(service).clear()
    vars(service).update(vars(FakeService()), answer=TRANSCRIPT)
    return service


@pytest.fixture
def api(shared: tuple[FakeService, Api], service: FakeService) -> Api:
    return shared[1]
