"""Serve options of a deployment, computed from its typed settings in one place."""

import math
from typing import Any

from ray.serve.config import RequestRouterConfig

from configs.deployment_settings import Deployment
from configs.settings import METRICS_INTERVAL_S
from deployments.runtime.hold import OUTLIVE_S, RELEASE_CHECK_S
from deployments.runtime.rollout import surge_percent

READY_TO_RUN = 2
"""Requests that wait inside a replica, so that its engine need not wait for the next one."""

# Serve's own back-off of up to 0.5 s would leave a replica idle between two requests.
_ROUTING = {"initial_backoff_s": 0.005, "max_backoff_s": 0.05}
_ROUTER = "deployments.runtime.model_router.ModelRouter"
_ELASTIC_ROUTER = "deployments.runtime.model_router.ElasticModelRouter"


def threads(settings: Deployment) -> int:
    """Threads that an engine may use: as many as the replica has logical CPUs, at least one."""
    return max(1, math.floor(settings.resources.num_cpus))


def serve_options(settings: Deployment, running_at_once: int, jobs: int = 0) -> dict[str, Any]:
    """Options for ``serve.deployment(cls, **options)``.

    A replica accepts only a few requests more than it runs at once, so that load spreads over
    replicas; ``max_queue`` more wait at the caller, one more is rejected there. ``jobs`` is the
    number of jobs that may run at once: even when the batch calls of all of them are at one
    replica, it accepts the interactive calls that they yield to.
    """
    scaling, resources, life = settings.scaling, settings.resources, settings.lifecycle
    return {
        "max_ongoing_requests": running_at_once + READY_TO_RUN + jobs,
        "max_queued_requests": life.max_queue,
        "request_router_config": RequestRouterConfig.model_validate(_ROUTING),
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
            "look_back_period_s": scaling.look_back_period_s,
            "metrics_interval_s": METRICS_INTERVAL_S,
        },
        "max_replicas_per_node": scaling.max_replicas_per_node,
        "health_check_period_s": life.health_check_period_s,
        "health_check_timeout_s": life.health_check_timeout_s,
        "graceful_shutdown_timeout_s": life.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_surge_percent": surge_percent(settings),
        "ray_actor_options": {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            **({"memory": resources.memory_mb * 1024**2} if resources.memory_mb else {}),
            **({"label_selector": resources.label_selector} if resources.label_selector else {}),
        },
    }


def model_options(
    settings: Deployment, running_at_once: int, callers_drain_s: float, jobs: int = 0
) -> dict[str, Any]:
    """:func:`serve_options` of a deployment that others call, and hold while they are stopped.

    ``callers_drain_s`` is the longest drain of these others.
    """
    options = serve_options(settings, running_at_once, jobs)
    router = _ROUTER if settings.scaling.min_replicas else _ELASTIC_ROUTER
    longest_s = max(settings.lifecycle.drain_timeout_s, callers_drain_s + OUTLIVE_S)
    return options | {
        "request_router_config": RequestRouterConfig.model_validate(
            _ROUTING | {"request_router_class": router}
        ),
        "graceful_shutdown_wait_loop_s": RELEASE_CHECK_S,
        "graceful_shutdown_timeout_s": longest_s,
    }
