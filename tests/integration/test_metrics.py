"""What Prometheus reads from the nodes."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
import ray
from websockets.asyncio.client import connect

from tests.integration.conftest import Service

pytestmark = pytest.mark.timeout(400)

LONGER_THAN_RAY_KEEPS_A_GAUGE_S = 25.0


async def live_sessions(application: str) -> list[float]:
    """The values of the gauge on all nodes."""
    lines = await gauge("speechgraph_live_sessions")
    return [float(value) for labels, value in lines if f'application="{application}"' in labels]


async def gauge(name: str) -> list[tuple[str, str]]:
    """The labels and the value of each line of a gauge, on all nodes."""
    pages = []
    async with httpx.AsyncClient() as client:
        for node in ray.nodes():
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            pages.append((await client.get(address)).text)
    return re.findall(rf"^ray_{name}\{{(.*)\}} (.*)$", "\n".join(pages), re.M)


async def becomes(application: str, expected: list[float]) -> None:
    """Wait until the gauge has these values."""
    async with asyncio.timeout(90):
        while await live_sessions(application) != expected:  # noqa: ASYNC110
            await asyncio.sleep(1)


async def test_the_number_of_live_sessions_is_exported_also_while_it_does_not_change(
    application: Service, demo_args: dict[str, Any]
) -> None:
    args = {
        "offline": True,
        "ingress": {"default_transcriber": "demo-vosk"},
        "decoder": demo_args["decoder"],
        "onnx_asr": demo_args["onnx_asr"],
    }
    with application("gauge", args) as service:
        await becomes("gauge", [0.0])
        url = service.replace("http", "ws", 1) + "/v1/ws"
        async with connect(url, ping_interval=None) as socket:
            await socket.send(json.dumps({"type": "start", "model": "demo-vosk"}))
            assert json.loads(await socket.recv())["type"] == "ready"
            await becomes("gauge", [1.0])
            await asyncio.sleep(LONGER_THAN_RAY_KEEPS_A_GAUGE_S)
            assert await live_sessions("gauge") == [1.0]


async def test_the_device_of_every_loaded_model_is_exported(demo: str) -> None:
    labels = ("model", "asked", "device", "compute_type")
    async with httpx.AsyncClient(timeout=30) as client:
        stats = (await client.get(f"{demo}/cache/stats")).json()
    loaded = {(row["model_name"], *(row[label] for label in labels[1:])) for row in stats}
    assert ("demo-whisper", "cpu", "cpu", "int8_float32") in loaded

    async def exported() -> set[tuple[str, ...]]:
        lines = [
            dict(re.findall(r'(\w+)="([^"]*)"', line))
            for line, value in await gauge("speechgraph_model_device")
            if float(value) == 1
        ]
        return {tuple(line[label] for label in labels) for line in lines}

    async with asyncio.timeout(90):
        while not loaded <= await exported():  # noqa: ASYNC110
            await asyncio.sleep(1)
