"""Serve options of a deployment, computed from its typed settings in one place."""

import math
from typing import Any

from configs.settings import Deployment

METRICS_INTERVAL_S = 1.0
"""Ray 2.60 takes the interval from METRICS_ENVIRONMENT only; the option silences its check."""

METRICS_ENVIRONMENT = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(METRICS_INTERVAL_S),
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(METRICS_INTERVAL_S),
}
"""For the environment of every node before Ray starts: load is seen after 1 s instead of 10 s."""


def threads(settings: Deployment) -> int:
    """Threads that an engine may use: as many as the replica has logical CPUs, at least one."""
    return max(1, math.floor(settings.resources.num_cpus))


def serve_options(settings: Deployment, running_at_once: int) -> dict[str, Any]:
    """Options for ``serve.deployment(...).options(**...)``.

    The queue stands inside the replica: Serve may hand a replica ``max_queue`` requests more than
    run at once, and callers wait in line for no longer than the same number again.
    """
    scaling, resources, life = settings.scaling, settings.resources, settings.lifecycle
    return {
        "max_ongoing_requests": running_at_once + life.max_queue,
        "max_queued_requests": max(1, life.max_queue),
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
        "ray_actor_options": {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            **({"memory": resources.memory_mb * 1024**2} if resources.memory_mb else {}),
            **({"label_selector": resources.label_selector} if resources.label_selector else {}),
            "runtime_env": {"env_vars": _environment(settings)},
        },
    }


def _environment(settings: Deployment) -> dict[str, str]:
    """What a replica must be told before its libraries load.

    Ray leaves CUDA_VISIBLE_DEVICES unset for replicas without a share of a GPU, so they would see
    all of them; and OpenMP would take every core.
    """
    env = {"OMP_NUM_THREADS": str(threads(settings)), "PYANNOTE_METRICS_ENABLED": "0"}
    if settings.resources.num_gpus == 0:
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env
