"""Metrics of the graph as a whole; each replica adds its own queue and inference seconds."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

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


@cache
def _out_of_memory() -> metrics.Counter:
    return metrics.Counter(
        "speechgraph_out_of_memory_total",
        "Times that the memory did not suffice for a model or its work.",
        tag_keys=("model",),
    )


def count_out_of_memory(model: str) -> None:
    """Record that the memory did not suffice."""
    _out_of_memory().inc(tags={"model": model})


@cache
def _live_sessions() -> metrics.Gauge:
    return metrics.Gauge("speechgraph_live_sessions", "Live streams of an ingress replica.")


@cache
def _live_lag_seconds() -> metrics.Histogram:
    return metrics.Histogram(
        "speechgraph_live_lag_seconds",
        "Seconds from the last sample of an utterance to its final.",
        boundaries=[0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60],
    )


@cache
def _model_device() -> metrics.Gauge:
    return metrics.Gauge(
        "speechgraph_model_device",
        "1 for each model that a replica has loaded, with the device that it asked for and got.",
        tag_keys=("model", "asked", "device", "compute_type"),  # type: ignore[arg-type]
    )


def observe_devices(rows: Iterable[Mapping[str, Any]]) -> None:
    """Record where the models of this replica run; ``rows`` are those of its cache.

    To be repeated every few seconds: Ray exports no gauge that was not set meanwhile, such as that
    of a model which is no longer loaded.
    """
    for row in rows:
        tags = {name: row[name] for name in ("asked", "device", "compute_type")}
        _model_device().set(1, tags={"model": row["model_name"], **tags})


def observe_sessions(count: int) -> None:
    """Record the number of live sessions."""
    _live_sessions().set(count)


def observe_lag(seconds: float) -> None:
    """Record how late the final of an utterance was."""
    _live_lag_seconds().observe(seconds)


@cache
def _whisper_reruns() -> metrics.Counter:
    return metrics.Counter(
        "speechgraph_whisper_reruns_total",
        "Windows that ran again because their values were not finite in the compute type.",
        tag_keys=("model",),
    )


def count_reruns(model: str, windows: int) -> None:
    """Count windows of a Whisper model that run again in a compute type of wider range."""
    _whisper_reruns().inc(windows, tags={"model": model})
