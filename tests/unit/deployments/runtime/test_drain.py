"""The end of a replica: noticed by its state in Serve's details, which may fail to be read."""

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.schema import ApplicationStatus, ReplicaState

from deployments.runtime import drain
from deployments.runtime.drain import when_draining

WAIT_S = 20.0


def details(state: ReplicaState | None) -> dict[str, Any]:
    """What Serve's controller reports of two replicas, of which "mine" may be absent."""
    replicas = [{"replica_id": "other", "state": ReplicaState.STOPPING}]
    if state is not None:
        replicas.append({"replica_id": "mine", "state": state})
    deployments = {"Ingress": {"replicas": replicas}}
    return {
        "applications": {"app": {"status": ApplicationStatus.RUNNING, "deployments": deployments}}
    }


DELETED = {"applications": {"app": {"status": ApplicationStatus.DELETING, "deployments": {}}}}


class Controller:
    """Returns or raises one report after the other, and the last one from then on."""

    def __init__(self, *reports: dict[str, Any] | Exception) -> None:
        self.reports = list(reports)
        self.polls = 0
        self.kept = False

    def keep(self) -> None:
        self.kept = True

    def get_serve_details(self) -> dict[str, Any]:
        self.polls += 1
        report = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        if isinstance(report, Exception):
            raise report
        return report


@pytest.fixture
def controlled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Controller], None]:
    """Makes this process the replica "mine" of a controller."""

    def use(controller: Controller) -> None:
        context = SimpleNamespace(
            app_name="app", deployment="Ingress", replica_id=SimpleNamespace(unique_id="mine")
        )
        monkeypatch.setattr(drain.serve, "get_replica_context", lambda: context)
        monkeypatch.setattr(drain, "_get_global_client", lambda: controller)
        monkeypatch.setattr(drain, "POLL_S", 0.0)
        monkeypatch.setattr(drain, "keep_last_replicas", controller.keep)

    return use


async def drained(controller: Controller) -> int:
    """How often the callback ran until the wait ended."""
    calls = 0

    async def then() -> None:
        nonlocal calls
        calls += 1

    await asyncio.wait_for(when_draining(then), WAIT_S)
    return calls


async def test_the_callback_runs_once_when_the_replica_is_stopping(
    controlled: Callable[[Controller], None],
) -> None:
    running, stopping = details(ReplicaState.RUNNING), details(ReplicaState.STOPPING)
    controller = Controller(running, running, stopping)
    controlled(controller)
    assert await drained(controller) == 1
    assert controller.polls == 3
    assert not controller.kept


async def test_the_deletion_of_the_application_stops_the_replica_and_keeps_the_models_callable(
    controlled: Callable[[Controller], None],
) -> None:
    controller = Controller(details(ReplicaState.RUNNING), DELETED)
    controlled(controller)
    assert await drained(controller) == 1
    assert controller.kept


async def test_the_state_of_another_replica_is_not_ours(
    controlled: Callable[[Controller], None],
) -> None:
    controller = Controller(details(None), details(ReplicaState.STOPPING))
    controlled(controller)
    assert await drained(controller) == 1
    assert controller.polls == 2


@pytest.mark.parametrize(
    "error",
    [RayActorError(), RuntimeError("no controller"), {"applications": {}}],
    ids=["controller died", "no controller", "controller recovers"],
)
async def test_a_state_that_cannot_be_read_is_read_again(
    controlled: Callable[[Controller], None], error: dict[str, Any] | Exception
) -> None:
    controller = Controller(error, error, details(ReplicaState.STOPPING))
    controlled(controller)
    assert await drained(controller) == 1
    assert controller.polls == 3


async def test_no_warning_is_logged_while_serve_builds_an_update(
    controlled: Callable[[Controller], None], caplog: pytest.LogCaptureFixture
) -> None:
    building = {"applications": {"app": {"status": "DEPLOYING", "deployments": {}}}}
    controller = Controller(building, building, details(ReplicaState.STOPPING))
    controlled(controller)
    assert await drained(controller) == 1
    assert controller.polls == 3
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
