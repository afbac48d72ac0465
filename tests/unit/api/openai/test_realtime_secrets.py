"""Client secrets of ``/v1/realtime``, issued and used as OpenAI's clients do it."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import openai.types.realtime as rt
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.auth import client_secrets
from api.openai.realtime_routes import MAX_BODY_BYTES
from tests.unit.api.openai.realtime_client import (
    QUERY,
    RAW,
    feed,
    items,
    next_event,
    transcripts,
)
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES, WAIT_S, LiveService, serving

KEY, OTHER = "a-key", "another-key"
SECRETS = "/v1/realtime/client_secrets"
SESSIONS = "/v1/realtime/transcription_sessions"
PAGE = "https://page.example"
SESSION: dict[str, Any] = {
    "type": "transcription",
    "audio": {"input": {"format": RAW, "transcription": {"model": UTTERANCES}}},
}
WriteKeys = Callable[[str], int]
SPOKEN = exact(speak(1, 2), silence(1))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(f"{KEY} name=page\n{OTHER}\n")
    return path


@pytest.fixture
def write_keys(keys_file: Path) -> WriteKeys:
    """Writes the whole key file anew."""
    return keys_file.write_text


@pytest.fixture
async def service(keys_file: Path) -> AsyncIterator[LiveService]:
    async with serving(FakeModels(), whole=True, keys_file=str(keys_file)) as service:
        yield service


def sdk(service: LiveService, key: str = KEY, **options: Any) -> AsyncOpenAI:
    address = f"127.0.0.1:{service.port}/v1"
    base: Any = {"base_url": f"http://{address}", "websocket_base_url": f"ws://{address}"}
    return AsyncOpenAI(api_key=key, max_retries=0, **base, **options)


async def post(
    service: LiveService,
    path: str = SECRETS,
    *,
    key: str = KEY,
    content: Any = None,
    **headers: str,
) -> httpx.Response:
    sent = {"Authorization": f"Bearer {key}"} | headers
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        if isinstance(content, bytes):
            return await client.post(path, content=content, headers=sent, timeout=WAIT_S)
        return await client.post(path, json=content, headers=sent, timeout=WAIT_S)


async def secret_of(service: LiveService, content: Any = None, **options: Any) -> str:
    answer = await post(service, content=content or {}, **options)
    assert answer.status_code == 200, answer.text
    value: str = answer.json()["value"]
    return value


@asynccontextmanager
async def page(
    service: LiveService, secret: str, path: str = "/v1/realtime", origin: str | None = PAGE
) -> AsyncIterator[dict[str, Any]]:
    """A socket as a browser opens it; the first event."""
    offered: Any = ["realtime", f"openai-insecure-api-key.{secret}"]
    headers = {"Origin": origin} if origin else {}
    uri = f"ws://127.0.0.1:{service.port}{path}"
    async with connect(
        uri, subprotocols=offered, additional_headers=headers, open_timeout=WAIT_S
    ) as socket:
        assert socket.subprotocol == "realtime"
        yield json.loads(await socket.recv())


async def refusal(service: LiveService, secret: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        async with page(service, secret, **options):
            pass
    response = refused.value.response
    error = json.loads(response.body or b"")
    return response.status_code, error["error"]["code"] if "error" in error else error["code"]


# OpenAI's clients


async def test_a_secret_of_the_sdk_opens_a_session_with_its_settings(service: LiveService) -> None:
    before = int(time.time())
    async with sdk(service) as client:
        made = await client.realtime.client_secrets.create(
            session=SESSION,  # type: ignore[arg-type]
            expires_after={"anchor": "created_at", "seconds": 60},
        )
    assert isinstance(made.session, rt.RealtimeTranscriptionSessionCreateResponse)
    assert made.value.startswith("ek_")
    assert before + 60 <= made.expires_at <= time.time() + 60
    assert made.session.id.startswith("sess_")
    assert made.session.object == "realtime.transcription_session"
    async with (
        sdk(service, made.value) as client,
        client.realtime.connect(extra_query=QUERY) as connection,
    ):
        created: Any = await next_event(connection)
        for shown in (made.session, created.session):
            assert shown.audio.input.transcription.model == UTTERANCES
            assert shown.audio.input.format.rate == RAW["rate"]
        await feed(connection, SPOKEN)
        assert transcripts(await items(connection, 1)) == ["1 2"]


async def test_a_secret_of_the_beta_opens_a_session_with_its_settings(service: LiveService) -> None:
    async with sdk(service) as client:
        made = await client.beta.realtime.transcription_sessions.create(
            input_audio_format="g711_ulaw",
            input_audio_transcription={"model": "whisper-1", "language": "ru"},
            client_secret={"expires_at": {"anchor": "created_at", "seconds": 30}},
        )
    assert made.client_secret.value.startswith("ek_")
    assert time.time() + 20 <= made.client_secret.expires_at <= time.time() + 30
    assert made.input_audio_format == "g711_ulaw"
    async with (
        sdk(service, made.client_secret.value) as client,
        client.beta.realtime.connect(model="gpt-4o-realtime-preview", extra_query=QUERY) as socket,
    ):
        created: Any = await socket.recv()
    assert created.type == "transcription_session.created"
    assert created.session["input_audio_format"] == "g711_ulaw"
    assert created.session["input_audio_transcription"]["language"] == "ru"


async def test_what_the_client_sets_counts_more_than_its_secret(service: LiveService) -> None:
    secret = await secret_of(service, {"session": SESSION})
    async with page(service, secret, f"/v1/realtime?model={STREAMING}") as created:
        transcription = created["session"]["audio"]["input"]["transcription"]
    assert transcription["model"] == STREAMING


async def test_a_secret_without_settings_begins_as_any_session(service: LiveService) -> None:
    for content in (None, b"", {}, {"session": {"type": "transcription"}}):
        answer = await post(service, content=content)
        assert answer.status_code == 200
        body = answer.json()
        assert set(body) == {"value", "expires_at", "session"}
        assert body["expires_at"] == pytest.approx(time.time() + 600, abs=WAIT_S)
    async with page(service, body["value"]) as created:
        assert created["session"] | {"id": ""} == body["session"] | {"id": ""}


# Who may use a secret


async def test_every_replica_accepts_a_secret(service: LiveService, keys_file: Path) -> None:
    secret = await secret_of(service)
    async with (
        serving(FakeModels(), whole=True, keys_file=str(keys_file)) as other,
        page(other, secret) as created,
    ):
        assert created["type"] == "session.created"


async def test_a_secret_is_for_the_pages_of_the_origin_that_asked(service: LiveService) -> None:
    secret = await secret_of(service, Origin=PAGE)
    async with page(service, secret):
        pass
    for origin in ("https://other.example", "null", None):
        assert await refusal(service, secret, origin=origin) == (403, "origin_not_allowed")
    anywhere = await secret_of(service)
    for origin in (PAGE, None):
        async with page(service, anywhere, origin=origin):
            pass


@pytest.mark.parametrize("path", ["/v1/ws", "/ws", "/vosk", "/asr/ru", "/v1/realtime/more"])
async def test_a_secret_opens_no_other_socket(service: LiveService, path: str) -> None:
    assert await refusal(service, await secret_of(service), path=path) == (403, "route_not_allowed")


async def test_a_secret_is_no_key_of_the_requests(service: LiveService) -> None:
    secret = await secret_of(service)
    for path in (SECRETS, SESSIONS, "/v1/process"):
        answer = await post(service, path, key=secret, content={})
        assert answer.status_code == 403, path
    assert answer.json()["code"] == "route_not_allowed"


async def test_a_secret_expires(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"expires_after": {"anchor": "created_at", "seconds": 10}}
    secret = await secret_of(service, content)
    now = time.time()
    monkeypatch.setattr(client_secrets.time, "time", lambda: now + 8)
    async with page(service, secret):
        pass
    monkeypatch.setattr(client_secrets.time, "time", lambda: now + 12)
    assert await refusal(service, secret) == (401, "invalid_api_key")


async def test_a_secret_ends_with_its_key(service: LiveService, write_keys: WriteKeys) -> None:
    secrets = [await secret_of(service, key=key) for key in (KEY, OTHER)]
    write_keys(f"{OTHER}\n")
    assert await refusal(service, secrets[0]) == (401, "invalid_api_key")
    async with page(service, secrets[1]):
        pass
    write_keys(f"{OTHER} routes=/v1/audio\n")
    assert await refusal(service, secrets[1]) == (403, "route_not_allowed")


async def test_a_socket_counts_for_the_limits_of_the_key(
    service: LiveService, write_keys: WriteKeys
) -> None:
    write_keys(f"{KEY} concurrent=1\n")
    secret = await secret_of(service)
    async with page(service, secret):
        assert await refusal(service, secret) == (429, "concurrency_limit_exceeded")
    async with page(service, secret):
        pass
    write_keys(f"{KEY} rate=2\n")
    secret = await secret_of(service)
    async with page(service, secret):
        pass
    assert await refusal(service, secret) == (429, "rate_limit_exceeded")


async def test_secrets_are_issued_for_keys_only(
    service: LiveService, write_keys: WriteKeys
) -> None:
    async with sdk(service, "wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.realtime.client_secrets.create()
    write_keys(f"{KEY} routes=/v1/audio\n")
    async with sdk(service) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.realtime.client_secrets.create()


async def test_a_service_without_keys_issues_secrets_that_carry_the_settings() -> None:
    async with serving(FakeModels(), whole=True) as service:
        secret = await secret_of(service, {"session": SESSION}, Origin=PAGE)
        async with page(service, secret) as created:
            found = created["session"]["audio"]["input"]["transcription"]["model"]
        assert found == UTTERANCES
        assert await refusal(service, secret, origin="https://other.example") == (
            403,
            "origin_not_allowed",
        )
        async with page(service, "ek_of-another-service") as created:
            assert created["type"] == "session.created"
        async with page(service, secret, "/v1/realtime/") as created:
            assert created["type"] == "session.created"


@pytest.mark.parametrize(
    ("lines", "printed"),
    [("client.beta.realtime.connect", "transcription_session.created"), ("client_secrets", "ek_")],
)
async def test_the_lines_of_the_page_run(
    quick: LiveService,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    lines: str,
    printed: str,
) -> None:
    text = (repository / "docs/api/realtime.md").read_text(encoding="utf-8")
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if lines in block]
    code = found.replace("localhost:8000", f"127.0.0.1:{quick.port}")
    await asyncio.to_thread(exec, code, {})
    assert capsys.readouterr().out.startswith(printed)


# Requests that are refused


@pytest.mark.parametrize(
    ("path", "content", "code", "param"),
    [
        (SECRETS, b"{", "invalid_value", None),
        (SECRETS, [], "invalid_value", None),
        (SECRETS, {"expires_after": {"seconds": 9}}, "invalid_value", "expires_after.seconds"),
        (SECRETS, {"expires_after": {"seconds": 7201}}, "invalid_value", "expires_after.seconds"),
        (SECRETS, {"expires_after": {"anchor": "now"}}, "invalid_value", "expires_after.anchor"),
        (SECRETS, {"ttl": 60}, "unknown_parameter", "ttl"),
        (SECRETS, {"session": {"type": "realtime"}}, "invalid_value", "session.type"),
        (
            SECRETS,
            {"session": {"audio": {"input": {"format": {"rate": 1}}}}},
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (SESSIONS, {"input_audio_format": "mp3"}, "invalid_value", "input_audio_format"),
        (
            SESSIONS,
            {"client_secret": {"expires_at": {"seconds": 5}}},
            "invalid_value",
            "client_secret.expires_at.seconds",
        ),
        (
            SESSIONS,
            {"turn_detection": {}},
            "missing_required_parameter",
            "turn_detection.type",
        ),
    ],
)
async def test_a_request_that_cannot_be_honoured_names_the_field(
    service: LiveService, path: str, content: Any, code: str, param: str | None
) -> None:
    answer = await post(service, path, content=content)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == (code, param)


async def test_a_model_that_is_not_served_is_an_error_when_the_secret_is_asked_for(
    service: LiveService,
) -> None:
    wanted = {"audio": {"input": {"transcription": {"model": "nothing"}}}}
    answer = await post(service, content={"session": wanted})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_settings_that_fit_into_no_secret_are_an_error(service: LiveService) -> None:
    prompt = "".join(chr(0x4E00 + (n * n * 7919) % 20_000) for n in range(5000))
    wanted = {"audio": {"input": {"transcription": {"prompt": prompt, "model": UTTERANCES}}}}
    answer = await post(service, content={"session": wanted})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "session"
    assert "session.update" in error["message"]


async def test_a_long_body_is_not_read(service: LiveService) -> None:
    answer = await post(service, content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [SECRETS, SESSIONS])
async def test_the_body_that_the_documentation_page_proposes_is_accepted(
    service: LiveService, path: str
) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        schema = (await client.get("/openapi.json")).json()
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    (proposed,) = body["examples"]
    answer = await post(service, path, content=proposed)
    assert answer.status_code == 200, answer.text
