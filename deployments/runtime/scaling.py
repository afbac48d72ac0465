"""How many replicas requests, live streams and queued jobs need.

Serve copies this module into its controller by value, so it imports nothing of the project.
"""

import math
from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext

LAG_LIMIT_S = 0.5
"""Seconds that audio may wait for its words before one more replica is added."""


class FollowStreams:
    """An autoscaling policy: a replica per ``target_streams``, one more while one lags.

    Its input is what the replicas record for autoscaling: ``streams`` and ``lag_s``.
    Serve keeps the result within the deployment's bounds and delays.
    """

    def __init__(self, target_streams: float) -> None:
        self._target_streams = target_streams

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        stats = context.aggregated_metrics or {}
        streams = stats.get("streams", {}).values()
        if not streams:
            return context.target_num_replicas, {}
        needed = math.ceil(sum(streams) / self._target_streams)
        return _one_more_if_late(needed, context), {}


class FollowRequests:
    """Serve's own policy, to which a socket is a request, and one more replica while one lags."""

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        needed, state = replica_queue_length_autoscaling_policy(context)
        return _one_more_if_late(needed, context), state


class FollowJobs:
    """An autoscaling policy: enough replicas for every job that is queued or runs.

    Its input is what the replicas record for autoscaling: each has ``jobs``, the number of all.
    Serve keeps the result within the deployment's bounds and delays.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        counts = (context.aggregated_metrics or {}).get("jobs", {}).values()
        if not counts:
            return context.target_num_replicas, {}
        return math.ceil(max(counts) / self._concurrency), {}


def _one_more_if_late(needed: float, context: AutoscalingContext) -> float:
    lags_s = (context.aggregated_metrics or {}).get("lag_s", {}).values()
    late = max(lags_s, default=0.0) > LAG_LIMIT_S
    return max(needed, context.current_num_replicas + 1) if late else needed
