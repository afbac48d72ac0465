"""What Serve's proxy does before a request reaches the ingress."""

from collections.abc import Iterator
from typing import Any

import pytest
from ray import serve
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from deployments.runtime.socket_limits import MAX_MESSAGE_BYTES
from tests.bursts import answers_to_a_burst
from tests.hostile_frames import close_code_for_announcing, echoed_bytes, negotiated_extensions
from tests.integration.conftest import Service

pytestmark = pytest.mark.timeout(300)


async def echo(socket: WebSocket) -> None:
    """Send back what comes."""
    await socket.accept()
    async for message in socket.iter_bytes():
        await socket.send_bytes(message)


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(Starlette(routes=[WebSocketRoute("/", echo)]))
class Echo:
    """A socket and no model."""


@pytest.fixture(scope="module")
def echo_url(cluster: str) -> Iterator[str]:
    """The socket of a small application."""
    serve.run(Echo.bind(), name="echo", route_prefix="/echo")
    yield cluster.replace("http", "ws") + "/echo/"
    serve.delete("echo")


async def test_compression_is_not_negotiated(echo_url: str) -> None:
    assert await negotiated_extensions(echo_url) == []


async def test_a_frame_that_announces_too_much_is_refused_before_its_content(
    echo_url: str,
) -> None:
    assert await close_code_for_announcing(echo_url, MAX_MESSAGE_BYTES + 1) == 1009


async def test_the_largest_message_passes(echo_url: str) -> None:
    assert await echoed_bytes(echo_url, MAX_MESSAGE_BYTES) == MAX_MESSAGE_BYTES


async def test_each_client_of_a_burst_is_served_or_rejected_by_the_ingress(
    application: Service, demo_args: dict[str, Any]
) -> None:
    args = {
        "offline": True,
        "ingress": {"default_transcriber": "demo-vosk", "sessions": {"max_sessions": 50}},
        "decoder": demo_args["decoder"],
        "vosk": demo_args["vosk"],
    }
    with application("burst", args) as service:
        answers = await answers_to_a_burst(service, sockets=500, requests=500)
    assert answers == {"101": 50, "503 with Retry-After": 450, "200": 500}
