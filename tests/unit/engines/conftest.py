"""The engines run with real libraries; none of them may connect to another machine."""

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.calls.sitecustomize import machine

HERE = Path(__file__).parent.relative_to(Path(__file__).parents[3]).as_posix()

Calls = list[str]
_calls: Calls = []


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    # Tests of other folders may run in between.
    if not os.environ.get("PYTEST_CURRENT_TEST", "").startswith(HERE):
        return
    if (name := machine(event, arguments)) is not None:
        _calls.append(f"{event} {name} from {''.join(traceback.format_stack(limit=12))}")


@pytest.fixture(scope="session")
def calls_elsewhere() -> Iterator[Calls]:
    """What the Python code of this process looks up or connects to on other machines."""
    sys.addaudithook(_record)  # which cannot be removed
    _calls.clear()
    yield _calls
    assert _calls == []


@pytest.fixture(autouse=True)
def _connects_nowhere(calls_elsewhere: Calls) -> Iterator[None]:
    yield
    assert calls_elsewhere == []
