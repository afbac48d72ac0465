"""Pages of the origins that the operator names may call every route, and read its errors."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ValidationError

from configs.settings import IngressSettings
from tests.unit.fake_service import FakeService, app_of, client_of

APP = "https://app.example"
LOCAL = "http://localhost:*"
ALLOWED = "Access-Control-Allow-Origin"
ROUTES = [
    ("POST", "/v1/process"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/transcribe"),
    ("POST", "/api/transcribe"),
    ("GET", "/v1/models"),
    ("DELETE", "/v1/jobs/job_1"),
    ("GET", "/health"),
]


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("")
    return file


async def preflight(client: httpx.AsyncClient, path: str, origin: str, **more: str) -> Any:
    asking = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-api-key,content-type",
    }
    return await client.options(path, headers=asking | more)


@pytest.mark.parametrize("keys", [False, True], ids=["open", "keys"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_page_of_a_named_origin_may_ask_and_read_every_answer(
    keys_file: Path, method: str, path: str, keys: bool
) -> None:
    settings: dict[str, Any] = {"cors_origins": [APP]}
    if keys:
        settings["keys_file"] = str(keys_file)
    async with client_of(app_of(FakeService(), **settings)) as client:
        asking = await preflight(client, path, APP, **{"Access-Control-Request-Method": method})
        assert asking.status_code in (200, 204)
        assert asking.headers[ALLOWED] in (APP, "*")
        assert method in asking.headers["Access-Control-Allow-Methods"]
        assert "authorization" in asking.headers["Access-Control-Allow-Headers"].lower()
        answer = await client.request(method, path, headers={"Origin": APP})
        assert answer.headers.get_list(ALLOWED) in ([APP], ["*"])
        assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]


async def test_without_the_setting_no_origin_is_allowed() -> None:
    async with client_of(app_of(FakeService())) as client:
        assert ALLOWED not in (await preflight(client, "/v1/process", APP)).headers
        assert ALLOWED not in (await client.get("/health", headers={"Origin": APP})).headers


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ([APP], APP, True),
        ([APP], "https://other.example", False),
        ([APP], f"{APP}.evil.example", False),
        ([APP], f"{APP}:8443", False),
        ([APP], "https://appXexample", False),
        ([APP, LOCAL], "http://localhost:5173", True),
        ([LOCAL], "http://localhost", True),
        ([LOCAL], "http://localhost:80.evil.example", False),
        (["*"], "https://any.example", True),
    ],
)
async def test_only_the_named_origins_are_allowed(
    origins: list[str], origin: str, allowed: bool
) -> None:
    async with client_of(app_of(FakeService(), cors_origins=origins)) as client:
        asking = await preflight(client, "/v1/process", origin)
        assert (ALLOWED in asking.headers) == allowed
        answer = await client.get("/health", headers={"Origin": origin})
        assert (ALLOWED in answer.headers) == allowed


@pytest.mark.parametrize("origin", ["app.example", f"{APP}/", f"{APP}/path", "https://*", ""])
def test_what_is_no_origin_is_rejected_at_the_start(origin: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        IngressSettings(default_transcriber="large-v3-turbo", cors_origins=(origin,))


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:8080"])
async def test_the_demo_allows_pages_of_this_machine(repository: Path, origin: str) -> None:
    demo = yaml.safe_load((repository / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    origins = demo["applications"][0]["args"]["ingress"]["cors_origins"]
    async with client_of(app_of(FakeService(), cors_origins=origins)) as client:
        assert (await client.get("/health", headers={"Origin": origin})).headers[ALLOWED] == origin
        other = await client.get("/health", headers={"Origin": APP})
        assert ALLOWED not in other.headers
