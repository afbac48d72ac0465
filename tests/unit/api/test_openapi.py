"""The OpenAPI document against the app: made-up requests of every route crash nothing."""

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from speech.transcript import Segment, Transcript, Word
from tests.unit.fake_service import FakeService, app_of
from tests.unit.job_service import jobs_in

TRANSCRIPT = Transcript(
    duration=2.0,
    language="ru",
    segments=(Segment(0.0, 1.0, " Привет.", (Word(" Привет.", 0.0, 1.0, 0.9),)),),
)


SERVICE = FakeService()
SERVICE.answer = TRANSCRIPT
FOLDER = Path(mkdtemp())
JOBS = jobs_in(FOLDER)
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def operations() -> list[Any]:
    schema = schemathesis.openapi.from_asgi("/openapi.json", app_of(SERVICE, JOBS.desk))
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
def test_no_request_is_a_server_error(operation: Any) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def asked(case: Any) -> None:
        case.call_and_validate(checks=[not_a_server_error])

    asked()
