"""What a client of Serve's proxy gets where no replica answers."""

from typing import Any

import pytest
from ray.serve._private.http_util import (
    RequestIdMiddleware,
    convert_object_to_asgi_messages,
    validate_http_proxy_callback_return,
)
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from deployments.runtime import proxy
from deployments.runtime.proxy import ProxyErrors, set_up_proxy

NO_ROUTE = "/no/such/dialect"
OPENAI = "/v1/audio/transcriptions"


async def dies(scope: Scope, receive: Receive, send: Send) -> None:
    """A request whose replica dies: Serve's proxy sends nothing."""
    await receive()


async def has_no_replica(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve's proxy without a replica; to a socket it sends the messages of a request too."""
    for message in convert_object_to_asgi_messages("Deployment unavailable", status_code=503):
        await send(message)


def client(app: ASGIApp) -> TestClient:
    """A client of Serve's proxy."""
    return TestClient(ProxyErrors(RequestIdMiddleware(app)))


@pytest.mark.parametrize(
    ("app", "detail"), [(dies, proxy.REPLICA_FAILED), (has_no_replica, proxy.NO_REPLICA)]
)
def test_a_request_without_an_answer_gets_a_503_of_its_dialect(app: ASGIApp, detail: str) -> None:
    plain = client(app).post(NO_ROUTE, headers={"X-Request-ID": "r-1"})
    assert (plain.status_code, plain.headers["Retry-After"]) == (503, "2")
    assert plain.headers.get_list("X-Request-ID") == ["r-1"]
    assert plain.json() == {"detail": detail, "code": "service_unavailable"}
    openai = client(app).post(OPENAI)
    assert (openai.status_code, openai.headers["Retry-After"]) == (503, "2")
    error = openai.json()["error"]
    assert (error["message"], error["type"]) == (detail, "server_error")
    assert len(openai.headers["X-Request-ID"]) > 8


def test_the_dialect_is_found_under_the_prefix_of_the_application() -> None:
    async def under_a_prefix(scope: Scope, receive: Receive, send: Send) -> None:
        scope["root_path"] = "/speech"  # as Serve's proxy does
        await dies(scope, receive, send)

    assert "error" in client(under_a_prefix).post(f"/speech{OPENAI}").json()


@pytest.mark.parametrize("app", [dies, has_no_replica])
def test_a_handshake_without_an_answer_gets_a_503(app: ASGIApp) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as rejected,
        client(app).websocket_connect("/v1/ws"),
    ):
        pass
    assert rejected.value.status_code == 503
    assert rejected.value.headers["Retry-After"] == "2"
    assert rejected.value.json()["code"] == "service_unavailable"


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse({"detail": "full", "code": "overloaded"}, 503, {"Retry-After": "7"}),
        PlainTextResponse("another application", 503),
        Response(status_code=500),
        PlainTextResponse("words"),
    ],
)
def test_what_a_replica_answers_passes_as_it_is(response: Response) -> None:
    answer = client(response).get(NO_ROUTE)
    assert (answer.status_code, answer.content) == (response.status_code, response.body)
    assert answer.headers.get("Retry-After") == response.headers.get("Retry-After")


def test_a_socket_that_was_accepted_passes_as_it_is() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    with client(echo).websocket_connect("/v1/ws") as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"


@pytest.mark.parametrize("root_path", ["", "/asr"])
def test_the_health_of_the_proxy_stays_as_serve_reports_it(root_path: str) -> None:
    at_root = TestClient(ProxyErrors(RequestIdMiddleware(has_no_replica)), root_path=root_path)
    answer = at_root.get(f"{root_path}/-/healthz")
    assert (answer.status_code, answer.text) == (503, "Deployment unavailable")


async def test_nothing_is_sent_to_a_client_that_left() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "path": NO_ROUTE, "method": "GET", "headers": []}
    await ProxyErrors(RequestIdMiddleware(dies))(scope, receive, send)


def test_serve_accepts_what_its_callback_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "limit_sockets", lambda: None)
    (middleware,) = validate_http_proxy_callback_return(set_up_proxy())
    assert middleware.cls is ProxyErrors
