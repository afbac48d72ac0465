"""How many replicas the autoscaling policies ask for."""

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingConfig

from configs.deployment_settings import Scaling
from configs.settings import LiveSettings
from deployments.runtime.scaling import FollowJobs, FollowRequests, FollowStreams


@pytest.mark.parametrize(
    ("streams", "lags_s", "expected"),
    [
        ([], [], 2),
        ([0, 0], [0, 0], 0),
        ([10, 0], [0.1, 0], 1),
        ([10, 1], [0.1, 0.1], 2),
        ([10, 21], [0.1, 0.1], 4),
        ([4, 3], [0.1, 0.9], 3),
        ([20, 20], [0.9, 0.9], 4),
    ],
    ids=["unknown", "idle", "one", "two", "many", "one lags", "many and lag"],
)
def test_replicas_follow_streams_and_lag(
    streams: list[float], lags_s: list[float], expected: int
) -> None:
    stats = {"streams": dict(enumerate(streams)), "lag_s": dict(enumerate(lags_s))}
    context = SimpleNamespace(
        aggregated_metrics=stats if streams else {}, current_num_replicas=2, target_num_replicas=2
    )
    assert FollowStreams(target_streams=10)(context) == (expected, {})


@pytest.mark.parametrize(
    ("requests", "lag_s", "expected"), [(10, 0.1, 1), (10, 0.9, 3), (40, 0.1, 4), (40, 0.9, 4)]
)
def test_ingress_replicas_follow_requests_and_lag(
    requests: int, lag_s: float, expected: int
) -> None:
    context = SimpleNamespace(
        aggregated_metrics={"lag_s": {"a": 0.0, "b": lag_s}},
        current_num_replicas=2,
        target_num_replicas=2,
        total_num_requests=requests,
        config=AutoscalingConfig(target_ongoing_requests=10),
    )
    assert FollowRequests()(context) == (expected, {})


@pytest.mark.parametrize(
    ("jobs", "expected"), [([], 2), ([0, 0], 0), ([1], 1), ([7, 9], 3), ([12, 12], 3), ([13], 4)]
)
def test_replicas_follow_the_jobs_that_are_queued_or_run(jobs: list[float], expected: int) -> None:
    stats = {"jobs": dict(enumerate(jobs))}
    context = SimpleNamespace(aggregated_metrics=stats if jobs else {}, target_num_replicas=2)
    assert FollowJobs(concurrency=4)(context) == (expected, {})


def test_live_replicas_cannot_scale_to_zero() -> None:
    """No stream could ever cause the first one to start."""
    with pytest.raises(ValueError, match="min_replicas"):
        LiveSettings(default_model="m", placement="replicas", scaling=Scaling(min_replicas=0))
