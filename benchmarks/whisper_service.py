"""Whisper behind the service: a graph of its own, and callers over HTTP."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.benchmark_server import running_graph
from benchmarks.demo_meeting import MEETING, wav
from benchmarks.whisper_load import (
    CLIP_S,
    FILE_OPTIONS,
    OPTIONS,
    Row,
    by_callers,
    cut,
    repeated,
)
from configs.catalogue import CATALOGUE_PATH
from speech.audio import SAMPLE_RATE, Samples

_NAME = "measured-whisper"
_INGRESSES = 2


@contextmanager
def service(
    path: Path,
    folder: Path,
    *,
    device: str,
    compute_type: str,
    threads: int,
) -> Iterator[str]:
    """The URL of a graph with the model at ``path``."""
    models = yaml.safe_load(CATALOGUE_PATH.read_text("utf-8"))
    models["models"].append(
        {
            "id": _NAME,
            "family": "whisper",
            "format": "ctranslate2",
            "source": {"path": str(path)},
            "licence": "Apache-2.0",
            "memory_mb": (path / "model.bin").stat().st_size // 10**6,
        }
    )
    catalogue = folder / "models.yaml"
    catalogue.write_text(yaml.safe_dump(models), "utf-8")
    # The cores are the engine's: on a machine of two the others have none of their own.
    args = {
        "catalogue": str(catalogue),
        "offline": True,
        "ingress": {
            "default_transcriber": _NAME,
            "max_concurrent_requests": 64,
            "scaling": {"min_replicas": _INGRESSES, "max_replicas": _INGRESSES},
            "resources": {"num_cpus": 0},
        },
        "decoder": {
            "scaling": {"min_replicas": 2, "max_replicas": 2},
            "resources": {"num_cpus": 0},
        },
        "whisper": {
            "default_model": _NAME,
            "device": device,
            "compute_type": compute_type,
            "resources": {"num_cpus": threads, "num_gpus": float(device == "cuda")},
        },
    }
    application = {
        "name": "speech",
        "route_prefix": "/",
        "import_path": "graphs.speech:build",
        "args": args,
    }
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8810},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [application],
    }
    with running_graph(config, folder, haproxy=False) as (url, _):
        yield url.replace("ws", "http", 1)


def rows(url: str, callers: Sequence[int], audio: Samples, seconds: float) -> Iterator[Row]:
    """Callers of clips, and one file of ten minutes."""
    clips = [wav(clip) for clip in cut(audio, CLIP_S, 16)]
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=url, timeout=600, limits=limits) as client:

        def send(name: str, data: bytes, options: dict[str, Any]) -> None:
            settings = {"tasks": ["transcribe"], "tra": options}
            response = client.post(
                "/v1/process",
                files={"audio": (name, data)},
                data={"request_json": json.dumps({"settings": settings})},
            )
            response.raise_for_status()

        for count in callers:
            yield by_callers(
                service_row(count),
                count,
                lambda number: send("clip.wav", clips[number % len(clips)], OPTIONS),
                seconds,
            )
        yield repeated(
            "service, 10-minute file",
            len(audio) / SAMPLE_RATE,
            lambda: send(MEETING.name, MEETING.read_bytes(), FILE_OPTIONS),
            seconds,
        )


def service_row(callers: int) -> str:
    """The name of a row of the service."""
    return f"service, callers: {callers}"
