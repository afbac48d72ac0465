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
