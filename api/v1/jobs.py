"""Jobs of the v1 dialect: their state and result, lists, cancellation."""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.middleware import caller_of
from api.errors import responses
from api.service import SpeechService
from api.v1.requests import ProcessRequest
from api.v1.responses import ProcessResponse, failure_of, job_answer, result_of
from speech.errors import EngineFailed
from speech.jobs.desk import JobDesk
from speech.jobs.states import NON_RETRYABLE, Job, WebhookState
from speech.pipeline import ProcessOptions
from speech.transcript import Transcript

JOB_ID = re.compile(r"job_[0-9a-f]{32}")
PAGE = 20
MAX_PAGE = 100


class Progress(TypedDict):
    """Progress: the stage that began last, and the seconds of audio recognised."""

    stage: str | None
    seconds_done: float


class Webhook(TypedDict):
    """Delivery of the notification that the job ended; no state until it has.

    ``last_error`` is why the last attempt failed, null once the notification was delivered;
    ``next_attempt_at`` is null where none is due.
    """

    url: str
    state: WebhookState | None
    attempts: int
    last_attempt_at: float | None
    last_error: str | None
    next_attempt_at: float | None


class JobResponse(ProcessResponse):
    """A job; times are Unix seconds, null until the event."""

    code: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    progress: Progress | None
    webhook: Webhook | None


class JobPage(TypedDict):
    """A page of jobs without their results, the newest first."""

    data: list[JobResponse]
    has_more: bool


def _describe(job: Job) -> JobResponse:
    running = job.state == "processing"
    return {
        **job_answer(job),
        "code": job.error_code if job.state == "failed" else None,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "attempts": job.attempts,
        "progress": {"stage": job.stage, "seconds_done": job.seconds_done} if running else None,
        "webhook": None
        if job.webhook_url is None
        else {
            "url": job.webhook_url,
            "state": job.webhook_state,
            "attempts": job.webhook_attempts,
            "last_attempt_at": job.webhook_attempted_at,
            "last_error": job.webhook_error,
            "next_attempt_at": job.webhook_due_at,
        },
    }


def _answer(body: JobResponse | JobPage) -> Response:
    return Response(to_json(body), media_type="application/json")


def _found(job: Job | None, id: str) -> Response:
    if job is None:
        raise HTTPException(404, f"Job with ID '{id}' not found.")
    return _answer(_describe(job))


async def result_text(
    job: Job,
    service: SpeechService,
    process: Callable[[ProcessOptions], Awaitable[Transcript]],
) -> str:
    """Run the request of a job: the result as JSON, as the synchronous call would return it.

    Raises what ``process`` raises, and the error of the first task if every task failed.
    """
    request = ProcessRequest.parse(job.request)
    transcript = await process(request.options(service))
    if failure := failure_of(transcript):
        code, message = failure
        raise next((kind for kind in NON_RETRYABLE if kind.code == code), EngineFailed)(message)

    def render() -> str:
        return to_json(result_of(transcript, request), inf_nan_mode="null").decode()

    return await run_in_threadpool(render)


def router(desk: JobDesk) -> APIRouter:
    """The routes of jobs. They are plain functions, run in threads, because the desk blocks."""
    routes = APIRouter(tags=["jobs"])

    @routes.get(
        "/v1/jobs",
        summary="List your jobs, the newest first",
        response_model=JobPage,
        responses=responses(422, 500, 503),
    )
    def list_jobs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
        after: Annotated[
            str | None, Query(pattern=f"^{JOB_ID.pattern}$", description="Last id of a page.")
        ] = None,
    ) -> Response:
        jobs, has_more = desk.page(caller_of(request), limit, after)
        return _answer({"data": [_describe(job) for job in jobs], "has_more": has_more})

    @routes.get("/v1/job/{job_id}", include_in_schema=False)
    @routes.get(
        "/v1/jobs/{job_id}",
        summary="State and result of a job",
        response_model=JobResponse,
        responses=responses(404, 500, 503),
    )
    def get_job(request: Request, job_id: str) -> Response:
        known = JOB_ID.fullmatch(job_id) is not None
        return _found(desk.find(caller_of(request), job_id) if known else None, job_id)

    @routes.delete("/v1/job/{job_id}", include_in_schema=False)
    @routes.delete(
        "/v1/jobs/{job_id}",
        summary="Cancel a job that has not ended",
        response_model=JobResponse,
        responses=responses(404, 500, 503),
    )
    def cancel_job(request: Request, job_id: str) -> Response:
        known = JOB_ID.fullmatch(job_id) is not None
        return _found(desk.cancel(caller_of(request), job_id) if known else None, job_id)

    return routes
