"""Replicas are spread over two nodes, and streams outlive the death of one of them."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from clients.stream_client import StreamClient
from tests.integration.conftest import Service, add_node, living_actors
from tests.integration.test_faults import eventually
from tests.integration.test_live import FRAME, LIVE_ONLY, essence, pcm, socket_url
from tests.unit.heldout import clips

STREAMS = 6
PACE = 3.0
MORTAL = {"room": "mortal"}
"""The label of the two nodes; no other test has replicas there."""


@pytest.fixture
def two_nodes(nodes: Cluster, cluster: str) -> Iterator[list[tuple[Node, str]]]:
    """Two more nodes of the cluster, and the address of the proxy of each."""
    added = [add_node(nodes, num_cpus=4, labels=MORTAL) for _ in range(2)]
    yield added
    for node, _ in added:
        if node in nodes.worker_nodes:
            nodes.remove_node(node, allow_graceful=False)


def nodes_of(deployment: str) -> Counter[str]:
    """The running replicas of a deployment of the test by node."""
    prefix = f"SERVE_REPLICA::two#{deployment}#"
    return Counter(actor.node_id for actor in living_actors() if actor.name.startswith(prefix))


def serves(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    return False


async def recognise(urls: list[str], audio: bytes, pace: float = PACE) -> list[str]:
    """The texts of the finals of a stream that is sent ``pace`` times as fast as spoken."""
    addresses = [socket_url(url, "/v1/ws") for url in urls]
    async with StreamClient(addresses) as stream:

        async def speak() -> None:
            for first in range(0, len(audio), FRAME):
                await stream.send(audio[first : first + FRAME])
                await asyncio.sleep(0.1 / pace)
            await stream.finish()

        speaking = asyncio.create_task(speak())
        events = [event async for event in stream]
        await speaking
    assert [event["seq"] for event in events if "seq" in event] == sorted(
        {event["seq"] for event in events if "seq" in event}
    )
    return essence(events)


async def test_streams_of_a_dead_node_end_on_the_other_with_the_same_text(
    application: Service, nodes: Cluster, two_nodes: list[tuple[Node, str]], demo_audio: Path
) -> None:
    audio = b"".join(pcm(clip.samples) + bytes(32_000) for clip in clips(demo_audio, count=4))
    placed = {"scaling": {"min_replicas": 2, "max_replicas": 2}}
    resources = {"num_cpus": 0.5, "label_selector": MORTAL}
    args = LIVE_ONLY | {
        "ingress": LIVE_ONLY["ingress"] | placed | {"resources": resources},
        "live": LIVE_ONLY["live"] | placed | {"resources": resources, "placement": "replicas"},
    }
    with application("two", args):
        both = {node.node_id for node, _ in two_nodes}
        for deployment in ("Ingress", "Live"):
            assert await asyncio.to_thread(nodes_of, deployment) == dict.fromkeys(both, 1)
        urls = [f"{address}/two" for _, address in two_nodes]
        for url in urls:
            await asyncio.to_thread(eventually, lambda url=url: serves(url))
        undisturbed = await recognise(urls, audio, pace=10)
        assert len(undisturbed) >= 3

        orders = [urls, urls[::-1]] * (STREAMS // 2)
        streams = [asyncio.create_task(recognise(order, audio)) for order in orders]
        await asyncio.sleep(len(audio) / 32_000 / PACE / 2)
        dead, alive = two_nodes
        await asyncio.to_thread(nodes.remove_node, dead[0], allow_graceful=False)
        assert await asyncio.gather(*streams) == [undisturbed] * STREAMS

        def complete() -> bool:
            here = {alive[0].node_id: 2}
            return nodes_of("Ingress") == here and nodes_of("Live") == here

        await asyncio.to_thread(eventually, complete)
        assert await asyncio.to_thread(serves, urls[1])
