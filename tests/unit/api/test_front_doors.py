"""What people and probes reach without knowing the API: the root, HEAD, and mistaken base URLs."""

from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from tests.unit.fake_service import FakeService, app_of, client_of

PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app_of(FakeService())) as client:
        yield client


async def test_a_browser_gets_a_page_with_links_that_work(client: httpx.AsyncClient) -> None:
    page = await client.get("/", headers=PAGE)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    links = [part.partition('"')[0] for part in page.text.split('href="')[1:]]
    assert {"docs", "v1/models", "favicon.ico"} <= set(links)
    for link in links:
        assert (await client.get(f"/{link}")).status_code == 200


async def test_the_icon_is_an_image(client: httpx.AsyncClient) -> None:
    answer = await client.get("/favicon.ico")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/svg+xml")


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/v1/models", "/docs", "/openapi.json", "/api/health"]
)
async def test_head_answers_as_get_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert head.headers["Content-Length"] == got.headers["Content-Length"]


async def test_models_with_a_slash_at_the_end_are_the_list(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/")).json() == (await client.get("/v1/models")).json()


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/audio/transcriptions", "/v1/audio/transcriptions"),
        ("//v1/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/v1//audio/transcriptions", "/v1/audio/transcriptions"),
        ("/v1/v1/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/openai/v1/audio/translations", "/v1/audio/translations"),
        ("/v1/audio/v1/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/api/v1/process", "/v1/process"),
        ("/process", "/v1/process"),
        ("/v1/api/transcribe", "/api/transcribe"),
        ("/v1/transcribe", "/transcribe"),
    ],
)
async def test_a_mistaken_base_url_is_answered_with_the_right_one(
    client: httpx.AsyncClient, path: str, right: str
) -> None:
    answer = await client.post(f"http://speech{path}", files={"file": b"RIFF"})
    assert answer.status_code == 404
    assert f"the URL should end in '{right}'" in answer.text
    assert ("error" in answer.json()) == right.startswith(("/v1/audio/", "/api/"))


async def test_a_mistaken_list_of_models_is_answered_with_the_right_path(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/models")
    assert (answer.status_code, "/v1/models" in answer.text) == (404, True)


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/v1/audio/speech/x", "/a" * 5000])
async def test_other_paths_are_not_found_without_advice(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert (answer.status_code, "should" in answer.text) == (404, False)


@pytest.mark.parametrize(
    ("path", "right"), [("/realtime", "/v1/realtime"), ("/v1/v1/ws", "/v1/ws")]
)
def test_a_mistaken_url_of_a_socket_is_answered_with_the_right_one(path: str, right: str) -> None:
    client = TestClient(app_of(FakeService()))
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(path):
        pass
    assert refused.value.status_code == 404
    assert right in refused.value.text
