"""Routers of a deleted application, and of one without replicas: from a copy of their class."""

from collections.abc import Iterator
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

from configs.engine_settings import ModelSettings
from deployments.runtime import router_state
from deployments.runtime.options import model_options
from deployments.runtime.router_state import absent_s, keep_last_replicas


class Loop:
    """Runs at once what is to run soon."""

    def call_soon_threadsafe(self, call: Any, *args: Any) -> None:
        call(*args)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A router that only knows its replicas."""

    def update(self: Any, replicas: list[str]) -> None:
        self._replicas = {replica: replica for replica in replicas}

    def init(self: Any) -> None:
        self._replicas = {}
        self._deployment_id = DeploymentID("Model")

    base = PowerOfTwoChoicesRequestRouter
    monkeypatch.setattr(base, "__init__", init)
    monkeypatch.setattr(base, "update_replicas", update)
    monkeypatch.setattr(base, "_event_loop", Loop())
    monkeypatch.setattr(base, "curr_replicas", property(lambda self: self._replicas))
    monkeypatch.setattr(router_state, "_keeping", False)
    monkeypatch.setattr(router_state, "_absent_since", {})
    options = model_options(ModelSettings.model_validate({"default_model": "m"}), 1, 60)
    return options["request_router_config"].get_request_router_class()()


def test_replicas_that_are_removed_are_no_longer_called(router: Any) -> None:
    router.update_replicas(["a", "b"])
    router.update_replicas([])
    assert not router.curr_replicas


def test_the_last_replicas_of_a_deleted_application_are_called_again(router: Any) -> None:
    router.update_replicas(["a", "b"])
    router.update_replicas([])
    keep_last_replicas()
    assert list(router.curr_replicas) == ["a", "b"]


def test_the_last_replicas_of_a_deleted_application_stay(router: Any) -> None:
    router.update_replicas(["a", "b"])
    keep_last_replicas()
    router.update_replicas([])
    assert list(router.curr_replicas) == ["a", "b"]


def test_a_router_reports_since_when_its_deployment_has_no_replica(router: Any) -> None:
    assert absent_s("Model") > 0, "none has been announced yet"
    router.update_replicas(["a"])
    assert absent_s("Model") == 0
    router.update_replicas([])
    first = absent_s("Model")
    router.update_replicas([])
    assert absent_s("Model") > first > 0
