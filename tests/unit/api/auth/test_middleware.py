"""Keys and their limits as clients meet them, over HTTP and on sockets, in every dialect."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.auth.middleware import OPEN_ROUTES
from configs.settings import IngressSettings
from speech.transcript import Transcript
from tests.unit.fake_service import FakeService, app_of, client_of

KEY = "5ecret-key"
HEADERS = {"X-API-Key": KEY}
SOCKETS = ("/v1/ws", "/ws", "/vosk")
WAIT_S = 30.0
WriteKeys = Callable[[str], int]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture
def write_keys(key_file: Path) -> WriteKeys:
    """Writes the whole key file anew."""
    return key_file.write_text


@pytest.fixture
def app(service: FakeService, key_file: Path) -> FastAPI:
    return app_of(service, keys_file=str(key_file))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """The app behind a web server that logs all it can; its address without the scheme."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.01)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


async def refusal(address: str, path: str, **options: Any) -> Any:
    """The HTTP answer to a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://{address}{path}", open_timeout=WAIT_S, **options):
            pass
    return refused.value.response


def process(client: httpx.AsyncClient, **options: Any) -> Any:
    form = {"files": {"audio": ("a", b"x")}, "data": {"request_json": '{"settings":{}}'}}
    return client.post("/v1/process", **form, **options)


class Gate:
    """A service call that stays until it is let go."""

    def __init__(self) -> None:
        self.entered, self.leave = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> Transcript:
        self.entered.set()
        await self.leave.wait()
        return Transcript(1.0)


# ---------------------------------------------------------------- who is admitted


async def test_without_keys_everything_is_open(service: FakeService) -> None:
    async with client_of(app_of(service)) as client:
        assert (await process(client)).status_code == 200
        assert (await client.get("/keys/count", headers=HEADERS)).status_code == 404


@pytest.mark.parametrize("path", ["/health", "/ready", "/is_alive", "/docs", "/openapi.json", "/"])
async def test_probes_and_the_pages_about_the_api_need_no_key(client, path: str) -> None:
    assert (await client.get(path)).status_code == 200


async def test_the_assets_of_the_pages_need_no_key(client) -> None:
    page = (await client.get("/docs")).text
    asset = next(part for part in page.split('"') if part.startswith("/docs/assets/"))
    assert (await client.get(asset)).status_code == 200


async def test_every_other_route_needs_a_key(app, client) -> None:
    """Whatever is added to the app is behind the key unless it is named as open."""
    operations = [
        (method, path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if path not in OPEN_ROUTES
    ]
    assert ("post", "/v1/process") in operations
    for method, path in [*operations, ("post", "/"), ("get", "/nowhere")]:
        answer = await client.request(method, path.replace("{name}", "x"))
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_every_socket_needs_a_key(app) -> None:
    paths = {route.path for route in app.routes if isinstance(route, WebSocketRoute)}
    async with serving(app) as address:
        for path in paths | set(SOCKETS):
            answer = await refusal(address, path)
            assert answer.status_code == 401
            assert json.loads(answer.body)["code"] == "missing_api_key"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"x-api-key": f"  {KEY} "},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer   {KEY}"},
        {"Authorization": f"Token {KEY}"},
        {"X-API-Key": KEY, "Authorization": "Bearer sk-of-somebody-else"},
        {"X-API-Key": "", "Authorization": f"Bearer {KEY}"},
    ],
)
async def test_a_key_comes_in_any_of_the_usual_headers(client, headers: dict[str, str]) -> None:
    assert (await process(client, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": ""}, {"Authorization": "Bearer"}, {"Authorization": "Basic eA"}]
)
async def test_a_request_without_a_key_gets_401(client, headers: dict[str, str]) -> None:
    answer = await process(client, headers=headers)
    assert answer.status_code == 401
    assert answer.json() == {"detail": "This route needs an API key.", "code": "missing_api_key"}
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("key", ["wrong", KEY[:-1], KEY + "x", KEY.upper(), "\xff\xfe", "x" * 9000])
async def test_a_wrong_key_gets_403(client, key: str) -> None:
    answer = await process(client, headers={"X-API-Key": key.encode("latin-1")})
    assert answer.status_code == 403
    assert answer.json() == {"detail": "The API key is not valid.", "code": "invalid_api_key"}


async def test_a_query_is_no_place_for_a_key_outside_of_sockets(client) -> None:
    assert (await process(client, params={"token": KEY})).status_code == 401


async def test_a_request_that_is_refused_is_not_read(service, app) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body is read")

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/process", "headers": []}
    await app({**scope, "query_string": b""}, receive, send)
    assert sent[0]["status"] == 401
    assert service.calls == []


async def test_a_browser_may_ask_what_it_may_send_without_a_key(client) -> None:
    asking = {"Origin": "http://a", "Access-Control-Request-Method": "POST"}
    assert (await client.options("/v1/process", headers=asking)).status_code != 401
    assert (await client.options("/v1/process")).status_code == 401
    answer = await process(client, headers=asking)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/ws", {"additional_headers": HEADERS}),
        ("/ws", {"additional_headers": {"Authorization": f"Token {KEY}"}}),
        (f"/vosk?model=vosk-ru&token={KEY}", {}),
        (f"/v1/ws?token={KEY.replace('-', '%2D')}", {}),
    ],
)
async def test_a_socket_opens_with_a_key(app, path: str, options: dict[str, Any]) -> None:
    async with serving(app) as address, connect(f"ws://{address}{path}", **options):
        pass


async def test_a_key_may_come_as_the_sub_protocol_of_openai(app) -> None:
    seen: list[str] = []

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        seen.append(str(websocket.scope))
        await websocket.accept(websocket.scope["subprotocols"][0])

    def offer(key: str) -> dict[str, Any]:
        return {"subprotocols": ["realtime", f"openai-insecure-api-key.{key}", "beta"]}

    async with serving(app) as address:
        async with connect(f"ws://{address}/echo", **offer(KEY)) as socket:
            assert socket.subprotocol == "realtime"
        assert (await refusal(address, "/echo", **offer("wrong"))).status_code == 403
        only = {"subprotocols": [f"openai-insecure-api-key.{KEY}"]}
        async with connect(f"ws://{address}/v1/ws", **only) as socket:
            assert socket.subprotocol is None
    assert "['realtime', 'beta']" in seen[0]
    assert KEY not in seen[0], "what is behind the door does not see the key"


@pytest.mark.parametrize("path", [*SOCKETS, "/v1/realtime"])
async def test_the_sub_protocol_beside_the_key_is_selected(app, path: str) -> None:
    key: Any = f"openai-insecure-api-key.{KEY}"
    names: Any = ["speechgraph", "another"]
    async with serving(app) as address:
        for offered in ([*names, key], [key, *names]):
            async with connect(f"ws://{address}{path}", subprotocols=offered) as socket:
                assert socket.subprotocol == "speechgraph"


@pytest.mark.parametrize("path", [*SOCKETS, "/v1/realtime"])
async def test_a_key_is_not_selected_where_the_service_asks_for_none(service, path: str) -> None:
    key: Any = f"openai-insecure-api-key.{KEY}"
    offered: Any = [key, "speechgraph"]
    async with serving(app_of(service)) as address:
        async with connect(f"ws://{address}{path}", subprotocols=offered) as socket:
            assert socket.subprotocol == "speechgraph"
        async with connect(f"ws://{address}{path}", subprotocols=[key]) as socket:
            assert socket.subprotocol is None


async def test_sockets_are_refused_before_the_upgrade_with_a_wrong_key(app) -> None:
    async with serving(app) as address:
        for path in SOCKETS:
            answer = await refusal(address, f"{path}?token=wrong")
            assert answer.status_code == 403
            assert json.loads(answer.body)["code"] == "invalid_api_key"


async def test_a_key_may_be_for_some_routes_only(client, write_keys: WriteKeys) -> None:
    write_keys(f"{KEY} routes=/v1/models,/keys\n")
    assert (await client.get("/v1/models", headers=HEADERS)).status_code == 200
    assert (await client.get("/v1/models/emo", headers=HEADERS)).status_code == 200
    assert (await client.get("/keys/count", headers=HEADERS)).status_code == 200
    answer = await process(client, headers=HEADERS)
    assert (answer.status_code, answer.json()["code"]) == (403, "route_not_allowed")
    assert (await client.get("//v1/models", headers=HEADERS)).status_code in (403, 404)


async def test_behind_a_prefix_routes_are_meant_without_it(
    service, key_file: Path, write_keys: WriteKeys
) -> None:
    write_keys(f"{KEY} routes=/v1/models\n")
    app = app_of(service, keys_file=str(key_file))
    transport = httpx.ASGITransport(app, root_path="/speech")
    async with httpx.AsyncClient(transport=transport, base_url="http://x/speech") as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models", headers=HEADERS)).status_code == 200
        assert (await client.get("/cache/stats", headers=HEADERS)).status_code == 403


def test_keys_that_are_required_must_have_a_file() -> None:
    with pytest.raises(ValueError, match="keys_required"):
        IngressSettings(default_transcriber="x", keys_required=True)


def test_a_service_whose_key_file_is_missing_does_not_start(service, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="make key"):
        app_of(service, keys_file=str(tmp_path / "none.txt"))


# ---------------------------------------------------------------- the file


async def test_a_key_that_is_added_or_taken_away_counts_at_once(
    client, write_keys: WriteKeys
) -> None:
    new = {"X-API-Key": "new"}
    assert (await client.get("/v1/models", headers=new)).status_code == 403
    write_keys(f"{KEY}\nnew\n")
    assert (await client.get("/v1/models", headers=new)).status_code == 200
    write_keys("new\n")
    assert (await client.get("/v1/models", headers=HEADERS)).status_code == 403


async def test_the_keys_can_be_counted_and_read_again_as_the_asr_server_does(
    client, write_keys: WriteKeys
) -> None:
    assert (await client.get("/keys/count", headers=HEADERS)).json() == {"count": 1}
    write_keys(f"{KEY}\nkey2\nkey3\n")
    answer = await client.post("/keys/reload", headers=HEADERS)
    assert (answer.status_code, answer.json()) == (200, {"message": "Перезагружено 3 ключей"})
    assert (await client.get("/keys/count", headers=HEADERS)).json() == {"count": 3}


# ---------------------------------------------------------------- how it is rendered


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/keys/count"), ("POST", "/keys/reload"), ("POST", "/transcribe")]
)
async def test_the_asr_server_has_its_own_texts(client, method: str, path: str) -> None:
    missing = await client.request(method, path)
    assert (missing.status_code, missing.json()) == (401, {"detail": "Not authenticated"})
    wrong = await client.request(method, path, headers={"X-API-Key": "wrong"})
    assert (wrong.status_code, wrong.json()) == (403, {"detail": "Неверный API ключ"})


async def test_openais_routes_have_an_error_object(client) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = await client.post("/v1/audio/transcriptions", headers=headers)
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


async def test_the_client_of_openai_knows_what_is_meant(
    service, app, write_keys: WriteKeys
) -> None:
    file = ("a.wav", b"RIFF")
    async with serving(app) as address:
        base = {"base_url": f"http://{address}/v1", "max_retries": 0}
        async with AsyncOpenAI(api_key=KEY, **base) as good:
            await good.audio.transcriptions.create(file=file, model="whisper-1")
            write_keys(f"{KEY} rate=1\n")
            await good.models.list()
            with pytest.raises(openai.RateLimitError) as limited:
                await good.audio.transcriptions.create(file=file, model="whisper-1")
            assert limited.value.code == "rate_limit_exceeded"
            assert int(limited.value.response.headers["retry-after"]) >= 1
        async with AsyncOpenAI(api_key="wrong", **base) as bad:
            with pytest.raises(openai.AuthenticationError) as refused:
                await bad.audio.transcriptions.create(file=file, model="whisper-1")
            assert refused.value.code == "invalid_api_key"


async def test_openapi_describes_how_to_send_a_key(app) -> None:
    schema = app.openapi()
    assert schema is app.openapi()
    assert set(schema["components"]["securitySchemes"]) == {"key", "bearer"}
    assert schema["paths"]["/v1/process"]["post"]["security"] == [{"key": []}, {"bearer": []}]
    assert {"401", "403", "429"} <= set(schema["paths"]["/v1/process"]["post"]["responses"])
    assert "security" not in schema["paths"]["/health"]["get"]


# ---------------------------------------------------------------- limits


async def test_requests_beyond_the_rate_get_429_in_the_shape_of_each_dialect(
    client, write_keys: WriteKeys
) -> None:
    write_keys(f"{KEY} rate=1\n")
    assert (await process(client, headers=HEADERS)).status_code == 200
    answer = await process(client, headers=HEADERS)
    assert answer.status_code == 429
    assert answer.json() == {
        "detail": "This key may send 1 requests per minute.",
        "code": "rate_limit_exceeded",
    }
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    answer = await client.post("/v1/audio/translations", headers=HEADERS)
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(answer.headers["retry-after"]) >= 1


async def test_refused_and_open_requests_cost_nothing(client, write_keys: WriteKeys) -> None:
    write_keys(f"{KEY} rate=1 routes=/v1/models\n")
    assert (await process(client, headers=HEADERS)).status_code == 403
    assert (await client.get("/health", headers=HEADERS)).status_code == 200
    assert (await client.get("/v1/models", headers=HEADERS)).status_code == 200
    assert (await client.get("/v1/models", headers=HEADERS)).status_code == 429


async def test_requests_at_once_are_limited_by_key_and_come_back(
    service, client, write_keys: WriteKeys
) -> None:
    write_keys(f"{KEY} concurrent=1\nother\n")
    gate = service.answer = Gate()
    first = asyncio.create_task(process(client, headers=HEADERS))
    await gate.entered.wait()
    answer = await client.get("/v1/models", headers=HEADERS)
    assert (answer.status_code, answer.json()["code"]) == (429, "concurrency_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await client.get("/v1/models", headers={"X-API-Key": "other"})).status_code == 200
    gate.leave.set()
    assert (await first).status_code == 200
    assert (await client.get("/v1/models", headers=HEADERS)).status_code == 200


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_request_that_ends_badly_gives_its_place_back(
    service, client, write_keys: WriteKeys, how: str
) -> None:
    write_keys(f"{KEY} concurrent=1\n")
    gate = service.answer = Gate()
    if how == "fails":
        service.answer = RuntimeError("boom")
        assert (await process(client, headers=HEADERS)).status_code == 500
    else:
        task = asyncio.create_task(process(client, headers=HEADERS))
        await gate.entered.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (await client.get("/v1/models", headers=HEADERS)).status_code == 200


async def test_a_socket_takes_a_place_for_as_long_as_it_lasts(app, write_keys: WriteKeys) -> None:
    write_keys(f"{KEY} concurrent=1\n")
    with_key = {"additional_headers": HEADERS}
    async with serving(app) as address:
        async with connect(f"ws://{address}/v1/ws", **with_key):
            answer = await refusal(address, "/vosk", **with_key)
            assert answer.status_code == 429
            assert json.loads(answer.body)["code"] == "concurrency_limit_exceeded"
            assert int(answer.headers["Retry-After"]) >= 1
            async with httpx.AsyncClient(base_url=f"http://{address}") as client:
                assert (await client.get("/v1/models", headers=HEADERS)).status_code == 429
        async with asyncio.timeout(WAIT_S):
            while True:  # the server needs a moment to see the disconnect
                try:
                    async with connect(f"ws://{address}/ws", **with_key):
                        return
                except InvalidStatus:
                    await asyncio.sleep(0.02)


# ---------------------------------------------------------------- what is logged and sent of a key


async def test_no_key_gets_into_a_log_or_an_answer(
    service, app, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("httpx", "httpcore", "websockets", "websockets.client", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what the clients log is their own
    wrong = "wr0ng-key"
    service.answer = RuntimeError("boom")
    sent = ""
    async with serving(app) as address:
        for path in SOCKETS:
            async with connect(f"ws://{address}{path}?token={KEY}&model=vosk-ru"):
                pass
            sent += (await refusal(address, f"{path}?model=x&token={wrong}")).body.decode()
        async with httpx.AsyncClient(base_url=f"http://{address}") as client:
            for key in (KEY, wrong):
                answers = [
                    await process(client, headers={"X-API-Key": key}),
                    await process(client, headers={"Authorization": f"Bearer {key}"}),
                    await client.get("/v1/models", params={"token": key}),
                    await client.get("/nowhere", headers={"X-API-Key": key}),
                ]
                sent += "".join(answer.text + str(answer.headers) for answer in answers)
    assert "model=vosk-ru" in caplog.text, "the server logs the rest of the query"
    assert "boom" in caplog.text
    for key in (KEY, wrong):
        assert key not in caplog.text
        assert key not in sent
