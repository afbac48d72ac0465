"""The table of the loaded models that is printed when the graph is up: where each of them runs."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from configs.settings import SpeechArgs
from deployments.runtime.broadcast import answers
from graphs.speech import MODEL_DEPLOYMENTS

Rows = Iterable[Mapping[str, Any]]

ANSWER_S = 5.0
"""Longest wait for the replicas of a deployment; they have just started."""
_COLUMNS = {
    "model": "model_name",
    "asked": "asked",
    "device": "device",
    "compute type": "compute_type",
}
_GPU_COLUMNS = {
    "encoder": "encoder",
    "GPU": "gpu",
    "total MiB": "gpu_total_mb",
    "used before": "gpu_used_before_mb",
    "used after": "gpu_used_after_mb",
    "free": "gpu_free_mb",
}


async def loaded_models(application: str, args: SpeechArgs) -> list[Mapping[str, Any]]:
    """The rows of all loaded models of the application, as :class:`api.models.CacheEntry`."""
    names = [
        "Ingress",
        *(MODEL_DEPLOYMENTS[family].__name__ for family in args.model_deployments()),
    ]
    if args.live_deployment is not None:
        names.append("Live")
    found = await asyncio.gather(
        *(_rows(serve.get_deployment_handle(name, application)) for name in names)
    )
    return [row for rows in found for row in rows]


async def _rows(handle: DeploymentHandle[Any]) -> list[Mapping[str, Any]]:
    try:
        found = await answers(handle, "cache_stats", first_s=ANSWER_S, others_s=ANSWER_S)
        return [row for rows in found for row in rows]
    except (TimeoutError, RayError, DeploymentUnavailableError):
        return []  # such as a deployment without a replica
    finally:
        await handle.shutdown_async()


def table(rows: Rows) -> str:
    """A line for each model, and one with the reason of each that is not on the GPU; "" for none.

    The columns of the GPU are there if a model runs on one.
    """
    rows = list(rows)
    if not rows:
        return ""
    on_gpu = any(row["gpu"] is not None for row in rows)
    columns = _COLUMNS | (_GPU_COLUMNS if on_gpu else {})
    cells = [list(columns), *(_cells(row, columns.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    heading, *lines = (_line(line, widths) for line in cells)
    printed = [heading]
    for row, line in zip(rows, lines, strict=True):
        printed.append(line)
        if row["fallback"] is not None:
            printed.append(f"    not on the GPU: {row['fallback']}")
    return "".join(f"  {line}\n" for line in printed)


def _cells(row: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return ["-" if row[key] is None else str(row[key]) for key in keys]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
