"""Serve options as computed from the settings of a deployment."""

from typing import Any

import pytest
from ray import serve

from configs.engine_settings import ModelSettings
from deployments.runtime.drain import POLL_S
from deployments.runtime.hold import RENEW_S
from deployments.runtime.options import model_options, serve_options, threads


def settings(**fields: Any) -> ModelSettings:
    return ModelSettings.model_validate({"default_model": "m", **fields})


@pytest.mark.parametrize(("num_cpus", "expected"), [(0, 1), (0.4, 1), (1, 1), (3.9, 3), (8, 8)])
def test_an_engine_has_a_thread_per_whole_cpu_and_at_least_one(
    num_cpus: float, expected: int
) -> None:
    assert threads(settings(resources={"num_cpus": num_cpus})) == expected


def test_a_replica_is_handed_what_it_runs_two_more_and_every_job() -> None:
    assert serve_options(settings(), 4)["max_ongoing_requests"] == 6
    assert serve_options(settings(), 4, jobs=10)["max_ongoing_requests"] == 16


def test_scaling_and_lifecycle_are_those_of_the_settings() -> None:
    options = serve_options(
        settings(
            scaling={"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 3.5},
            lifecycle={"max_queue": 7, "drain_timeout_s": 40, "health_check_period_s": 2},
        ),
        1,
    )
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 5)
    assert scaling["target_ongoing_requests"] == 3.5
    assert options["max_queued_requests"] == 7
    assert options["graceful_shutdown_timeout_s"] == 40
    assert options["health_check_period_s"] == 2


def test_resources_are_in_the_units_of_ray_and_absent_where_not_set() -> None:
    plain = serve_options(settings(resources={"num_cpus": 2}), 1)["ray_actor_options"]
    assert plain == {"num_cpus": 2, "num_gpus": 0}
    placed = {"memory_mb": 3, "label_selector": {"role": "asr"}}
    options = serve_options(settings(resources=placed), 1)["ray_actor_options"]
    assert options["memory"] == 3 * 1024**2
    assert options["label_selector"] == {"role": "asr"}


def test_serve_accepts_the_options() -> None:
    class Deployed:
        pass

    deployment = serve.deployment(Deployed, **serve_options(settings(), 4))
    assert deployment.max_ongoing_requests == 6


def test_a_model_replica_stops_after_its_callers_and_leaves_them_time_to_hold_it() -> None:
    options = model_options(settings(lifecycle={"drain_timeout_s": 10}), 1, callers_drain_s=60)
    assert options["graceful_shutdown_timeout_s"] > 60
    assert options["graceful_shutdown_wait_loop_s"] > POLL_S + RENEW_S
    router = options["request_router_config"].get_request_router_class()
    assert (router.__name__, router.always_running) == ("ModelRouter", True)


def test_the_first_call_of_a_deployment_that_may_have_no_replica_waits_for_one() -> None:
    options = model_options(settings(scaling={"min_replicas": 0}), 1, callers_drain_s=60)
    assert not options["request_router_config"].get_request_router_class().always_running
