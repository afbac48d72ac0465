"""What Serve's proxy does before a request reaches the ingress, and where none answers it."""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

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


async def die(_: Request | WebSocket) -> Response:
    """Crash under a request or a handshake."""
    os._exit(1)


ROUTES = [WebSocketRoute("/", echo), WebSocketRoute("/die", die), Route("/v1/audio/die", die)]


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, health_check_period_s=1)
@serve.ingress(Starlette(routes=ROUTES))
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


def test_a_request_whose_replica_dies_gets_a_503_of_its_dialect(echo_url: str) -> None:
    answer = httpx.get(echo_url.replace("ws", "http", 1) + "v1/audio/die", timeout=60)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert len(answer.headers.get_list("X-Request-ID")) == 1


async def test_a_handshake_whose_replica_dies_gets_a_503(echo_url: str) -> None:
    with pytest.raises(InvalidStatus) as rejected:
        await connect(echo_url + "die", open_timeout=60)
    response = rejected.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
    assert b"service_unavailable" in response.body


async def test_each_client_of_a_burst_is_served_or_rejected_by_the_ingress(
    application: Service, demo_args: dict[str, Any]
) -> None:
    args = {
        "offline": True,
        "ingress": {"default_transcriber": "demo-vosk", "sessions": {"max_sessions": 50}},
        "decoder": demo_args["decoder"],
        "onnx_asr": demo_args["onnx_asr"],
    }
    with application("burst", args) as service:
        answers = await answers_to_a_burst(service, sockets=500, requests=500)
    assert answers == {"101": 50, "503 with Retry-After": 450, "200": 500}
