"""What operators and tools ask: health, readiness, models, documentation, request ids."""

import asyncio
import re

import pytest

from api.app import make_app
from api.request_id import request_id
from api.service import DeploymentState
from configs.settings import IngressSettings
from speech.transcript import Transcript
from tests.unit.fake_service import FakeService, app_of, client_of, no_streams

ON_CPU = {"asked": "auto", "device": "cpu", "compute_type": "int8_float32"}
ON_GPU = {"asked": "auto", "device": "cuda", "compute_type": "float16"}
FORM = {"files": {"audio": ("a", b"x")}, "data": {"request_json": '{"settings":{}}'}}


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService):
    async with client_of(app_of(service)) as client:
        yield client


HEALTH = {
    "status": "healthy",
    "version": "1.2.3",
    "model_loaded": True,
    "model_name": "large-v3-turbo",
    "current_model": "large-v3-turbo",
}


async def test_health_answers_with_the_version_and_the_model(client):
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()) == (200, HEALTH)


async def test_health_reports_that_no_replica_has_the_model(client, service):
    service.deployments["Whisper"] = False
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {**HEALTH, "model_loaded": False})


async def test_the_deployment_of_a_family_of_two_words_counts_for_health(client, service):
    service.default_models["transcribe"] = "vosk-ru"
    service.deployments = {"OnnxAsr": True}
    assert (await client.get("/health")).json()["model_loaded"] is True


@pytest.mark.parametrize("trouble", ["error", "silence"])
async def test_health_is_about_this_process_also_when_the_controller_fails(
    client, service, monkeypatch, trouble
):
    async def deployment_states() -> dict[str, DeploymentState]:
        if trouble == "error":
            raise ConnectionError("the controller does not answer")
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(service, "deployment_states", deployment_states)
    monkeypatch.setattr("api.health.STATES_TIMEOUT_S", 0.01)
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {**HEALTH, "model_loaded": False})


async def test_ready_when_every_deployment_is_up(client):
    answer = await client.get("/ready")
    assert answer.status_code == 200
    up = {"Decoder": True, "Whisper": True}
    assert answer.json() == {"status": "ready", "deployments": up, "devices": {}}


async def test_not_ready_while_the_replica_is_being_stopped(service):
    settings = IngressSettings(default_transcriber="large-v3-turbo")
    streams = no_streams(service, settings)
    await streams.sessions.drain()
    async with client_of(make_app(service, streams, settings, "1.2.3")) as client:
        answer = await client.get("/ready")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json() == {"status": "draining", "deployments": {}, "devices": {}}


async def test_not_ready_while_the_controller_lists_no_deployment(client, service):
    service.deployments.clear()
    assert (await client.get("/ready")).status_code == 503


async def test_not_ready_while_one_deployment_is_down(client, service):
    service.deployments["Whisper"] = False
    answer = await client.get("/ready")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    down = {"Decoder": True, "Whisper": False}
    assert answer.json() == {"status": "not_ready", "deployments": down, "devices": {}}


async def test_ready_names_the_devices_of_the_loaded_models(client, service):
    service.loaded = [
        {"model_name": "small", **ON_GPU},
        {"model_name": "small", **ON_CPU, "fallback": "libcublas.so.12 is missing"},
        {"model_name": "small", **ON_GPU},
        {"model_name": "emo", **ON_CPU},
    ]
    devices = (await client.get("/ready")).json()["devices"]
    assert devices == {"small": [ON_GPU, ON_CPU], "emo": [ON_CPU]}


@pytest.mark.parametrize("trouble", ["error", "silence"])
async def test_ready_does_not_wait_for_replicas_that_do_not_name_their_devices(
    client, service, monkeypatch, trouble
):
    service.loaded = [{"model_name": "emo", **ON_CPU}]
    monkeypatch.setattr("api.model_devices.DEVICES_AGE_S", 0.0)
    monkeypatch.setattr("api.model_devices.DEVICES_WAIT_S", 0.01)
    assert (await client.get("/ready")).json()["devices"] == {"emo": [ON_CPU]}

    async def cache_stats(*, required_only: bool) -> None:
        if trouble == "error":
            raise ConnectionError("no replica answers")
        await asyncio.Event().wait()

    monkeypatch.setattr(service, "cache_stats", cache_stats)
    answer = await client.get("/ready")
    assert (answer.status_code, answer.json()["devices"]) == (200, {"emo": [ON_CPU]})


async def test_ready_without_a_replica_where_a_deployment_may_have_none(client, service):
    service.deployments["Whisper"] = False
    service.may_have_no_replicas = {"Whisper"}
    answer = await client.get("/ready")
    up = {"Decoder": True, "Whisper": False}
    body = {"status": "ready", "deployments": up, "devices": {}}
    assert (answer.status_code, answer.json()) == (200, body)
    assert (await client.get("/health")).json()["model_loaded"] is False


async def test_the_models_are_those_whose_deployment_runs(client):
    answer = (await client.get("/v1/models")).json()
    assert answer["object"] == "list"
    ids = [model["id"] for model in answer["data"]]
    # no OnnxAsr here
    assert ids == ["large-v3-turbo", "small", "emo", "other-emo", "pyannote", "other-pyannote"]


async def test_a_model_has_its_owner_family_languages_and_whether_it_is_loaded(client, service):
    service.loaded = [{"model_name": "small", **ON_CPU}]
    models = {m["id"]: m for m in (await client.get("/v1/models")).json()["data"]}
    turbo, small = models["large-v3-turbo"], models["small"]
    assert turbo["object"] == "model"
    assert isinstance(turbo["created"], int)
    assert (turbo["owned_by"], small["owned_by"]) == ("Systran", "speechgraph")
    assert (small["family"], small["languages"]) == ("whisper", ["ru", "en"])
    assert (turbo["loaded"], small["loaded"]) == (False, True)
    assert (turbo["devices"], small["devices"]) == ([], [ON_CPU])
    assert [id for id, m in models.items() if m["default"]] == ["large-v3-turbo", "emo", "pyannote"]


async def test_the_list_states_which_models_are_here_and_which_can_be_fetched(client, service):
    service.present = {"small", "emo"}
    service.loaded = [{"model_name": "pyannote", **ON_CPU}]
    models = {m["id"]: m for m in (await client.get("/v1/models")).json()["data"]}
    assert {id for id, m in models.items() if m["available"]} == {"small", "emo", "pyannote"}
    assert {id for id, m in models.items() if m["fetchable"]} == {"large-v3-turbo"}
    for wanted in (True, False):
        answer = await client.get("/v1/models", params={"available": wanted})
        ids = {model["id"] for model in answer.json()["data"]}
        assert ids == {id for id, m in models.items() if m["available"] == wanted}
    assert (await client.get("/v1/models/whisper-1")).json()["available"] is False


@pytest.mark.parametrize("name", ["large-v3-turbo", "whisper-1", "openai/turbo"])
async def test_one_model_is_found_by_id_or_alias(client, name):
    answer = await client.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["id"]) == (200, "large-v3-turbo")


@pytest.mark.parametrize("name", ["no-such-model", "vosk-ru"])
async def test_a_model_that_is_not_served_is_not_found(client, name):
    answer = await client.get(f"/v1/models/{name}")
    message = f"Model '{name}' is not served here."
    assert answer.status_code == 404
    assert answer.json() == {
        "detail": message,
        "code": "not_found",
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        },
    }


async def test_cache_stats_lists_the_loaded_copies(client, service):
    service.loaded = [
        {
            "model_name": "small",
            "task_type": "transcribe",
            "wrapper_class": "WhisperEngine",
            "loaded_at": 1.5,
            "last_used": 2.5,
            "idle_seconds": 0.5,
            "use_count": 3,
            "estimated_mem_bytes": 1024,
            **ON_CPU,
            "fallback": "libcublas.so.12 is missing",
            "gpu": None,
        }
    ]
    answer = await client.get("/cache/stats")
    assert (answer.status_code, answer.json()) == (200, service.loaded)


async def test_the_documentation_page_loads_nothing_from_elsewhere(client):
    page = await client.get("/docs")
    assert page.status_code == 200
    urls = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(urls) >= 2
    for url in urls:
        assert url.startswith("/docs/assets/")
        assert (await client.get(url)).status_code == 200
    assert "url: '/openapi.json'" in page.text


async def test_openapi_describes_the_request_text_and_every_error(client):
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    operation = document["paths"]["/v1/process"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"]
    text = schemas[form.rsplit("/", 1)[1]]["properties"]["request_json"]
    assert text["contentMediaType"] == "application/json"
    assert text["contentSchema"]["required"] == ["settings"]
    tra = schemas["TraSettings"]["properties"]
    assert (tra["beam_size"]["minimum"], tra["beam_size"]["maximum"]) == (1, 10)
    statuses = {"200", "400", "408", "413", "415", "422", "500", "503", "504"}
    assert set(operation["responses"]) == statuses
    bodies = {"openai": "OpenAIErrorBody", "whisper": "RestError"}
    for path in document["paths"].values():
        for method in path.values():
            for status, response in method["responses"].items():
                schema = response["content"]["application/json"]["schema"]
                if status >= "4" and method["tags"] != ["health"]:
                    body = bodies.get(method["tags"][0], "ErrorBody")
                    assert schema == {"$ref": f"#/components/schemas/{body}"}
                assert schema, "every answer has a schema"


async def test_every_reference_of_openapi_leads_somewhere(client):
    answer = await client.get("/openapi.json")
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.text))
    assert "Settings" in names
    assert names <= set(answer.json()["components"]["schemas"])
    assert "#/$defs" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/no/such/path", 404, "not_found"),
        ("GET", "/docs/assets/no-such-file.js", 404, "not_found"),
        ("GET", "/v1/process", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
async def test_unknown_paths_and_methods_are_refused_in_the_common_shape(
    client, method, path, status, code
):
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["code"] == code
    assert isinstance(answer.json()["detail"], str)


async def test_below_a_route_prefix_errors_keep_the_shape_of_their_dialect(service):
    service.answer = RuntimeError("boom")
    app = app_of(service)

    async def mounted(scope, receive, send):
        await app({**scope, "root_path": "/speech"}, receive, send)

    async with client_of(mounted) as client:
        answer = await client.post("/speech/v1/process", **FORM)
    assert answer.json()["detail"].startswith("Synchronous processing failed: ")


@pytest.mark.parametrize("path", ["/health", "/no/such/path"])
async def test_a_request_id_is_echoed(client, path):
    answer = await client.get(path, headers={"X-Request-ID": "order-42/a.b:c"})
    assert answer.headers["X-Request-ID"] == "order-42/a.b:c"


async def test_a_request_without_an_id_is_given_one(client):
    ids = {(await client.get("/health")).headers["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)


@pytest.mark.parametrize("bad", ["", "a" * 129, "two words", 'quo"te', "\xff"])
async def test_an_id_with_unsafe_characters_is_replaced(client, bad):
    answer = await client.get("/health", headers={b"X-Request-ID": bad.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


async def test_the_service_sees_the_id_of_the_request_it_works_for(client, service):
    seen = []

    async def answer() -> Transcript:
        seen.append(request_id.get())
        return Transcript(1.0)

    service.answer = answer
    await client.post("/v1/process", **FORM, headers={"X-Request-ID": "mine"})
    assert seen == ["mine"]
    assert request_id.get() == "-"


async def test_behind_a_server_that_echoes_the_id_there_is_no_second_copy(service):
    settings = IngressSettings(default_transcriber="large-v3-turbo")
    app = make_app(
        service, no_streams(service, settings), settings, "1", server_echoes_request_id=True
    )
    async with client_of(app) as client:
        answer = await client.get("/health", headers={"X-Request-ID": "mine"})
        assert "X-Request-ID" not in answer.headers
        answer = await client.get("/health", headers={"X-Request-ID": "not sane"})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])
