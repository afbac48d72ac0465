"""The route of the v1 API: ``POST /v1/process``, words, turns and emotions of a file."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Header, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import PydanticUndefined, to_json
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.auth.middleware import caller_of
from api.errors import Problem, RenderError, family_problem, render_detail, responses
from api.fields import LANGUAGE
from api.service import SpeechService
from api.v1.requests import IdempotencyKey, ProcessRequest, ProcessRequestText
from api.v1.responses import ProcessResponse, failure_of, job_answer, render
from infra.fetch import Fetcher
from infra.guarded_http import MAX_URL_CHARS
from speech.errors import EmptyAudio, InvalidRequest, NotEnabled, SpeechError
from speech.jobs.desk import JobDesk
from speech.pipeline import Task


def _render_failure(problem: Problem) -> Response:
    if problem.status == 500:
        problem = replace(problem, detail=f"Synchronous processing failed: {problem.detail}")
    return render_detail(problem)


ERROR_SHAPES: Mapping[str, RenderError] = {"/v1/process": _render_failure}


_MISSING = {"type": "missing", "loc": ("body", "audio"), "msg": "Field required"}


async def _audio_of(
    audio: UploadFile | None, file_url: str | None, fetcher: Fetcher | None
) -> bytes:
    """The bytes of the upload, or of the file that the request names instead."""
    if file_url is not None:
        if fetcher is None:
            raise NotEnabled("file_url: this service fetches no files.")
        if audio is not None:
            raise InvalidRequest("audio and file_url: one of the two, not both.")
        try:
            return await fetcher.fetch(file_url)
        except SpeechError as error:
            raise type(error)(f"file_url: {error.message}") from None
    if audio is None:
        raise RequestValidationError([_MISSING])
    data = await audio.read()
    # Its temporary file need not stay on disk while the models run.
    await audio.close()
    return data


def router(
    service: SpeechService,
    route_class: type[APIRoute],
    jobs: JobDesk | None,
    fetcher: Fetcher | None,
) -> APIRouter:
    """The route; ``route_class`` bounds it, see :func:`api.limits.heavy_route`.

    Without ``jobs`` nothing can be queued, without a ``fetcher`` the file has to be uploaded.
    """
    routes = APIRouter(tags=["speech"], route_class=route_class)
    # FastAPI takes PydanticUndefined for no default, so the part is required then.
    absent: Any = PydanticUndefined if fetcher is None else None

    @routes.post(
        "/v1/process",
        summary="Transcribe and diarize a file, and classify its emotions",
        response_model=ProcessResponse,
        responses=responses(400, 408, 413, 415, 422, 500, 503, 504),
    )
    async def process(
        *,
        http: Request,
        audio: Annotated[
            UploadFile, File(description="Audio or video in any common container.")
        ] = absent,
        tasks: Annotated[
            list[Task], Form(description="What to do; transcribe if absent.", max_length=16)
        ] = [],  # noqa: B006
        model: Annotated[str | None, Form(description="Model that transcribes.")] = None,
        language: Annotated[
            str | None,
            LANGUAGE,
            Form(description="Code or name of the language; detected if absent or auto."),
        ] = None,
        request_json: Annotated[
            str | None,
            ProcessRequestText(),
            Form(
                description="All other options, as JSON: "
                '`{"settings": {"tasks": ["transcribe", "diarization"]}}`. The fields beside it '
                "replace what it has."
            ),
        ] = None,
        file_url: Annotated[
            str | None,
            Form(
                max_length=MAX_URL_CHARS,
                description="URL of the file, in its place; where this service fetches files.",
            ),
        ] = None,
        idempotency_key: Annotated[
            IdempotencyKey | None, Header(description="A job is queued once for each key.")
        ] = None,
    ) -> Response:
        request = ProcessRequest.of_form(request_json, tasks, model=model, language=language)
        if request.async_process and jobs is None:
            raise NotEnabled("async_process: this service runs no job queue.")
        options = request.options(service)
        data = await _audio_of(audio, file_url, fetcher)
        if not data:
            raise EmptyAudio("Empty audio file provided.")
        if request.async_process and jobs is not None:
            key = _one_key(idempotency_key, request.idempotency_key)
            text = request.model_dump_json(exclude={"idempotency_key"})
            job = await run_in_threadpool(
                jobs.submit, caller_of(http), data, text, key, request.webhook_url
            )
            return Response(to_json(job_answer(job)), media_type="application/json")
        transcript = await service.process(data, options)
        if failure := failure_of(transcript):
            return _render_failure(family_problem(*failure))
        body = await run_in_threadpool(render, transcript, request)
        return Response(body, media_type="application/json")

    return routes


def _one_key(header: str | None, field: str | None) -> str | None:
    if header is not None and field is not None and header != field:
        raise InvalidRequest("The header Idempotency-Key and idempotency_key are not the same.")
    return header or field
