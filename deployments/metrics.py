"""Metrics of the graph as a whole; each replica adds its own queue and inference seconds."""

from functools import cache

from ray.serve import metrics

from speech.pipeline import Stage


@cache
def _stage_seconds() -> metrics.Histogram:
    return metrics.Histogram(
        "speechgraph_stage_seconds",
        "Seconds of each stage of a request, queueing included.",
        boundaries=[0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800],
        tag_keys=("stage",),
    )


def observe_stage(stage: Stage, seconds: float) -> None:
    """Record how long a stage of one request took."""
    _stage_seconds().observe(seconds, tags={"stage": stage})
