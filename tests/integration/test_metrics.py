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
    pages = []
    async with httpx.AsyncClient() as client:
        for node in ray.nodes():
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            pages.append((await client.get(address)).text)
    lines = re.findall(r"^ray_speechgraph_live_sessions\{(.*)\} (.*)$", "\n".join(pages), re.M)
    return [float(value) for labels, value in lines if f'application="{application}"' in labels]


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
