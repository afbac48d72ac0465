"""Jobs of the v1 API: the shapes of the original, and the additions."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.v1.jobs import result_text
from speech.errors import EngineFailed, Overloaded
from speech.jobs.desk import JobBounds, JobDesk
from speech.jobs.job_worker import Progress
from speech.jobs.states import Job
from speech.transcript import BranchError, Segment, Transcript, Word
from tests.unit.fake_service import FakeService, app_of, client_of
from tests.unit.job_service import Jobs, jobs_in

TRANSCRIPT = Transcript(
    duration=2.0,
    language="ru",
    segments=(Segment(0.0, 1.0, " Привет.", (Word(" Привет.", 0.0, 1.0, 0.9),)),),
)
UNKNOWN = f"job_{'0' * 32}"


@pytest.fixture
def service() -> FakeService:
    service = FakeService()
    service.answer = TRANSCRIPT
    return service


@pytest.fixture
def jobs(tmp_path: Path):
    jobs = jobs_in(tmp_path)
    yield jobs
    jobs.store.close()


@pytest.fixture
def app(service: FakeService, jobs: Jobs) -> FastAPI:
    return app_of(service, jobs.desk)


@pytest.fixture
async def client(app: FastAPI):
    async with client_of(app) as client:
        yield client


def work_of(service: FakeService):
    """The work of the runner, with the fake service instead of the graph."""

    async def work(job: Job, data: bytes, progress: Progress) -> str:
        return await result_text(job, service, partial(service.process, data))

    return work


async def ask(
    client: httpx.AsyncClient,
    audio: bytes = b"RIFF",
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> httpx.Response:
    request = {"settings": {}, "async_process": True, **fields}
    return await client.post(
        "/v1/process",
        files={"audio": ("a.wav", audio)},
        data={"request_json": json.dumps(request)},
        headers=headers,
    )


async def submit(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await ask(client, **fields)
    assert answer.status_code == 200, answer.text
    id: str = answer.json()["job_id"]
    return id


# ---------------------------------------------------------------- shapes of the original


async def test_a_job_is_answered_with_queued_and_an_id(client, service):
    answer = await ask(client)
    assert answer.status_code == 200
    body = answer.json()
    id = body["job_id"]
    assert body == {"status": "queued", "job_id": id, "result": None, "error": None}
    assert service.calls == [], "nothing runs during the request"


@pytest.mark.parametrize("path", ["/v1/jobs/", "/v1/job/"])
async def test_a_job_is_found_under_both_paths(client, path):
    id = await submit(client)
    answer = await client.get(path + id)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["job_id"]) == ("queued", id)
    assert (body["result"], body["error"]) == (None, None)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/jobs/", "/v1/job/"])
@pytest.mark.parametrize("id", [UNKNOWN, "job_1234abcd_1700000000", "%00", "job_'--"])
async def test_an_unknown_job_is_not_found(client, method, path, id):
    answer = await client.request(method, path + id)
    assert answer.status_code == 404
    shown = httpx.URL(path + id).path.removeprefix(path)
    assert answer.json()["detail"] == f"Job with ID '{shown}' not found."


@pytest.mark.parametrize("format_output", ["json", "text"])
async def test_the_result_of_a_job_is_that_of_a_synchronous_request(
    client, service, jobs, format_output
):
    settings = {"tasks": ["transcribe"], "tra": {"temperature": [0, 0.5], "language": "ru"}}
    fields = {"settings": settings, "format_output": format_output}
    waited = await ask(client, **fields, async_process=False)
    id = await submit(client, **fields)
    async with jobs.working(work_of(service)):
        await jobs.ended(id)
    body = (await client.get(f"/v1/jobs/{id}")).json()
    assert body["status"] == "completed"
    assert body["result"] == waited.json()["result"]
    first, second = service.calls
    assert first == second, "the same audio with the same options"


async def test_a_failed_job_shows_its_error_and_attempts(client, service, jobs):
    service.answer = EngineFailed("the model failed")
    id = await submit(client)
    async with jobs.working(work_of(service)):
        await jobs.ended(id)
    body = (await client.get(f"/v1/jobs/{id}")).json()
    assert (body["status"], body["error"], body["code"]) == (
        "failed",
        "the model failed",
        "engine_failed",
    )
    assert (body["result"], body["attempts"]) == (None, 3)


async def test_the_error_of_an_attempt_that_is_retried_is_not_shown(client, jobs):
    id = await submit(client)
    lease = jobs.store.take(10.0)
    jobs.store.requeue(lease, 60.0, EngineFailed("once"), counted=True)
    body = (await client.get(f"/v1/jobs/{id}")).json()
    assert (body["status"], body["error"], body["code"], body["attempts"]) == (
        "queued",
        None,
        None,
        1,
    )


async def test_a_job_of_which_every_task_failed_has_failed(client, service, jobs):
    service.answer = Transcript(1.0, errors=(BranchError("transcribe", "engine_failed", "no"),))
    id = await submit(client, partial_results=True)
    async with jobs.working(work_of(service)):
        await jobs.ended(id)
    body = (await client.get(f"/v1/jobs/{id}")).json()
    assert (body["status"], body["code"], body["error"]) == (
        "failed",
        "engine_failed",
        "transcribe: no",
    )


async def test_partial_results_are_a_result(client, service, jobs):
    service.answer = replace(TRANSCRIPT, errors=(BranchError("emotion", "engine_failed", "no"),))
    id = await submit(client, partial_results=True)
    async with jobs.working(work_of(service)):
        await jobs.ended(id)
    body = (await client.get(f"/v1/jobs/{id}")).json()
    assert body["status"] == "completed"
    assert body["result"]["errors"] == [
        {"task": "emotion", "code": "engine_failed", "message": "no"}
    ]


# ---------------------------------------------------------------- additions


async def test_a_running_job_shows_its_progress(client, jobs):
    id = await submit(client)
    lease = jobs.store.take(10.0)
    jobs.store.renew(lease, 10.0, "transcribe", 12.5)
    body = (await client.get(f"/v1/jobs/{id}")).json()
    assert body["status"] == "processing"
    assert body["progress"] == {"stage": "transcribe", "seconds_done": 12.5}
    assert body["started_at"] >= body["created_at"]
    assert body["ended_at"] is None


async def test_a_cancelled_job_stays_cancelled(client, service, jobs):
    id = await submit(client)
    answer = await client.delete(f"/v1/jobs/{id}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    async with jobs.working(work_of(service)):
        other = await submit(client)
        await jobs.ended(other)
    again = await client.delete(f"/v1/jobs/{id}")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert len(service.calls) == 1


async def test_cancelling_a_job_that_is_done_changes_nothing(client, service, jobs):
    id = await submit(client)
    async with jobs.working(work_of(service)):
        await jobs.ended(id)
    answer = await client.delete(f"/v1/jobs/{id}")
    assert answer.json() == (await client.get(f"/v1/jobs/{id}")).json()
    assert answer.json()["status"] == "completed"


async def test_jobs_are_listed_in_pages(client):
    ids = [await submit(client, audio=b"RIFF%d" % n) for n in range(5)]
    first = (await client.get("/v1/jobs", params={"limit": 3})).json()
    assert [job["job_id"] for job in first["data"]] == ids[:1:-1]
    assert first["has_more"] is True
    rest = (await client.get("/v1/jobs", params={"limit": 3, "after": ids[2]})).json()
    assert [job["job_id"] for job in rest["data"]] == ids[1::-1]
    assert rest["has_more"] is False


async def test_a_list_has_no_results(client, service, jobs):
    id = await submit(client)
    async with jobs.working(work_of(service)):
        await jobs.ended(id)
    (job,) = (await client.get("/v1/jobs")).json()["data"]
    assert (job["status"], job["result"]) == ("completed", None)


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"after": UNKNOWN}, {"after": "x"}]
)
async def test_an_invalid_page_is_rejected(client, query):
    answer = await client.get("/v1/jobs", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("limit", [1, 100])
async def test_a_page_may_be_as_long_as_its_bounds(client, limit):
    assert (await client.get("/v1/jobs", params={"limit": limit})).status_code == 200


@pytest.mark.parametrize("where", ["header", "field"])
async def test_a_request_that_is_repeated_with_its_key_makes_one_job(client, where):
    key = {"headers": {"Idempotency-Key": "k1"}} if where == "header" else {"idempotency_key": "k1"}
    assert await submit(client, **key) == await submit(client, **key)
    other = await ask(client, audio=b"other", **key)
    assert (other.status_code, other.json()["code"]) == (422, "invalid_request")
    assert len((await client.get("/v1/jobs")).json()["data"]) == 1


async def test_a_repeated_request_gets_the_state_of_its_job(client, service, jobs):
    id = await submit(client, idempotency_key="k1")
    async with jobs.working(work_of(service)):
        await jobs.ended(id)
    body = (await ask(client, idempotency_key="k1")).json()
    assert body.keys() == {"status", "job_id", "result", "error"}
    assert (body["status"], body["job_id"]) == ("completed", id)
    assert body["result"]["tra"]["text"] == "Привет."


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ключ"])
async def test_an_invalid_key_is_rejected(client, key):
    answer = await ask(client, idempotency_key=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_two_different_keys_are_rejected(client):
    answer = await ask(client, headers={"Idempotency-Key": "a"}, idempotency_key="b")
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"settings": {"tra": {"model": "imaginary"}}}, 422, "model_not_found"),
        ({"settings": {"tra": {"beam_size": 11}}}, 422, "invalid_request"),
        ({"audio": b""}, 400, "empty_audio"),
        ({"webhook_url": "ftp://example.org"}, 422, "invalid_request"),
        ({"webhook_url": "http://u:p@example.org"}, 422, "invalid_request"),
        ({"webhook_url": "http://"}, 422, "invalid_request"),
        ({"webhook_url": "http://e.org/" + "x" * 2048}, 422, "invalid_request"),
        ({"webhook_url": "http://e.org", "async_process": False}, 422, "invalid_request"),
    ],
)
async def test_an_invalid_request_is_rejected_before_it_is_queued(client, fields, status, code):
    answer = await ask(client, **fields)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await client.get("/v1/jobs")).json()["data"] == []


async def test_a_full_queue_is_answered_with_retry_after(service, tmp_path):
    jobs = jobs_in(tmp_path, max_queued=1)
    async with client_of(app_of(service, jobs.desk)) as client:
        await submit(client)
        answer = await ask(client)
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1


async def test_a_database_that_does_not_answer_is_an_overload(client, jobs, monkeypatch):
    def unavailable(*_: object) -> None:
        raise Overloaded("the job store does not answer")

    monkeypatch.setattr(jobs.store, "find", unavailable)
    answer = await client.get(f"/v1/jobs/{UNKNOWN}")
    assert answer.status_code == 503


async def test_the_owner_of_a_job_reads_why_its_webhook_was_not_delivered(client, jobs, service):
    id = await submit(client, webhook_url="http://127.0.0.1:9/")
    job = (await client.get(f"/v1/jobs/{id}")).json()
    assert job["webhook"] == {
        "url": "http://127.0.0.1:9/",
        "state": None,
        "attempts": 0,
        "last_attempt_at": None,
        "last_error": None,
        "next_attempt_at": None,
    }
    async with jobs.working(work_of(service), backoff_s=1000.0, max_backoff_s=1000.0):
        await jobs.until(id, lambda job: job.webhook_error is not None)
    webhook = (await client.get(f"/v1/jobs/{id}")).json()["webhook"]
    assert (webhook["state"], webhook["attempts"]) == ("pending", 1)
    assert "ConnectError" in webhook["last_error"]
    assert webhook["next_attempt_at"] > webhook["last_attempt_at"] + 900
    assert (await client.get("/v1/jobs")).json()["data"][0]["webhook"] == webhook


async def test_a_service_without_webhooks_refuses_them(service, jobs):
    def none(url: str) -> None:
        from speech.errors import NotEnabled

        raise NotEnabled("no webhooks")

    desk = JobDesk(jobs.store, jobs.audio, JobBounds(10, 10_000), none)
    async with client_of(app_of(service, desk)) as client:
        answer = await ask(client, webhook_url="http://example.org")
    assert (answer.status_code, answer.json()["code"]) == (422, "not_enabled")


async def test_a_job_belongs_to_the_key_that_made_it(service, jobs, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("old-of-ann name=ann\nnew-of-ann name=ann\nof-bob\n")
    app = app_of(service, jobs.desk, keys_file=str(keys))
    async with client_of(app) as client:
        ann, bob = {"X-API-Key": "old-of-ann"}, {"X-API-Key": "of-bob"}
        id = await submit(client, headers=ann)
        for method in ("GET", "DELETE"):
            assert (await client.request(method, f"/v1/jobs/{id}", headers=bob)).status_code == 404
        assert (await client.get("/v1/jobs", headers=bob)).json()["data"] == []
        for key in ("old-of-ann", "new-of-ann"):
            headers = {"X-API-Key": key}
            found = await client.get(f"/v1/jobs/{id}", headers=headers)
            assert found.json()["status"] == "queued"
            listed = (await client.get("/v1/jobs", headers=headers)).json()["data"]
            assert [job["job_id"] for job in listed] == [id]


async def test_a_service_without_jobs_has_no_routes_of_them(service):
    async with client_of(app_of(service)) as client:
        assert (await client.get("/v1/jobs")).status_code == 404
        answer = await ask(client)
    assert (answer.status_code, answer.json()["code"]) == (422, "not_enabled")
