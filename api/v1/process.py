"""The v1 dialect: ``POST /v1/process`` turns an uploaded file into words, turns and emotions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Header, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import PydanticUndefined, from_json, to_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import Response
from typing_extensions import TypedDict

from api.errors import Problem, RenderError, family_problem, render_detail, responses
from api.fetch import Fetcher
from api.service import SpeechService
from api.v1.requests import IdempotencyKey, ProcessRequest, ProcessRequestText
from infra.addresses import MAX_URL_CHARS
from speech.errors import EmptyAudio, InvalidRequest, NotEnabled
from speech.jobs.desk import JobDesk
from speech.jobs.states import Job, State
from speech.transcript import Segment, Transcript


class WordResult(TypedDict):
    """A word with the space before it; ``speaker`` is null without diarization."""

    start: float
    end: float
    word: str
    confidence: float | None
    speaker: str | None


class Alternative(TypedDict):
    """One reading of a chunk."""

    words: list[WordResult]


class Chunk(TypedDict):
    """The words of one segment; channels are counted from "1"."""

    alternatives: list[Alternative]
    channelTag: str


class SegmentResult(TypedDict):
    """One stretch of speech as text."""

    start: float
    end: float
    text: str
    speaker: str | None
    emotion: dict[str, float] | None
    channelTag: str


class TraResult(TypedDict):
    """What was said."""

    chunks: list[Chunk]
    text: str
    language: str | None
    segments: list[SegmentResult]


class TraText(TypedDict):
    """What was said, as one text."""

    start: float
    end: float
    text: str


class TurnResult(TypedDict):
    """A stretch in which one speaker talks."""

    start: float
    end: float
    speaker: str


class DiaResult(TypedDict):
    """Who spoke when."""

    turns: list[TurnResult]


class EmotionResult(TypedDict):
    """How a stretch sounded: label to probability."""

    start: float
    end: float
    emotional: dict[str, float]
    speaker: str | None


class EmoResult(TypedDict):
    """How it sounded."""

    segments: list[EmotionResult]


class TaskError(TypedDict):
    """A task that failed while others succeeded."""

    task: str
    code: str
    message: str


class JsonResult(TypedDict):
    """Result of ``format_output: json``; a block that was not asked for, or failed, is null."""

    tra: TraResult | None
    dia: DiaResult | None
    emo: EmoResult | None
    duration: float
    models: dict[str, str]
    stage_seconds: dict[str, float]
    warnings: list[str]
    errors: list[TaskError]


class TextResult(TypedDict, total=False):
    """Result of ``format_output: text``: what was asked for; errors only with partial_results."""

    tra: TraText | None
    dia: DiaResult | None
    emo: EmoResult | None
    errors: list[TaskError]


class ProcessResponse(TypedDict):
    """Answer of the v1 API; all four keys are always there."""

    status: State
    job_id: str | None
    result: JsonResult | TextResult | None
    error: str | None


def result_of(transcript: Transcript, request: ProcessRequest) -> JsonResult | TextResult:
    """The result in the format that was asked for."""
    as_asked = _as_text if request.format_output == "text" else _as_json
    return as_asked(transcript, request)


def failure_of(transcript: Transcript) -> tuple[str, str] | None:
    """Code and message if every task failed: then even partial results are a failure."""
    blocks = (transcript.segments, transcript.turns, transcript.emotions)
    if not transcript.errors or any(block is not None for block in blocks):
        return None
    told = "; ".join(f"{error.task}: {error.message}" for error in transcript.errors)
    return transcript.errors[0].code, told


def render(transcript: Transcript, request: ProcessRequest) -> bytes:
    """The answer to a request that succeeded, as JSON; infinities and NaN become null."""
    answer: ProcessResponse = {
        "status": "completed",
        "job_id": None,
        "result": result_of(transcript, request),
        "error": None,
    }
    return to_json(answer, inf_nan_mode="null")


def job_answer(job: Job) -> ProcessResponse:
    """How a job stands; the error is told once there will be no other attempt."""
    return {
        "status": job.state,
        "job_id": job.id,
        "result": None if job.result is None else from_json(job.result),
        "error": job.error if job.state == "failed" else None,
    }


def caller_of(request: HTTPConnection) -> str:
    """Name of the key that a request or socket came with; "" where there are no keys."""
    return getattr(request.state, "caller", "")


def _as_json(transcript: Transcript, request: ProcessRequest) -> JsonResult:
    tra = request.settings.tra
    return {
        "tra": _tra(transcript, with_words=tra is None or tra.word_timestamps),
        "dia": _dia(transcript),
        "emo": _emo(transcript),
        "duration": transcript.duration,
        "models": dict(transcript.models),
        "stage_seconds": dict(transcript.stage_seconds),
        "warnings": list(transcript.warnings),
        "errors": _errors(transcript),
    }


def _as_text(transcript: Transcript, request: ProcessRequest) -> TextResult:
    tasks = request.settings.tasks
    result: TextResult = {}
    if "transcribe" in tasks:
        heard = transcript.segments is not None
        text: TraText = {"start": 0.0, "end": transcript.duration, "text": transcript.text}
        result["tra"] = text if heard else None
    if "diarization" in tasks:
        result["dia"] = _dia(transcript)
    if "emotion" in tasks:
        result["emo"] = _emo(transcript)
    if request.wants_partial_results:
        result["errors"] = _errors(transcript)
    return result


def _tra(transcript: Transcript, with_words: bool) -> TraResult | None:
    if transcript.segments is None:
        return None
    return {
        "chunks": [_chunk(s, with_words) for s in transcript.segments],
        "text": transcript.text,
        "language": transcript.language,
        "segments": [
            {
                "start": s.start,
                "end": s.end,
                "text": s.text.strip(),
                "speaker": s.speaker,
                "emotion": None if s.emotion is None else dict(s.emotion),
                "channelTag": _channel_tag(s),
            }
            for s in transcript.segments
        ],
    }


def _chunk(segment: Segment, with_words: bool) -> Chunk:
    words: list[WordResult] = [
        {
            "start": w.start,
            "end": w.end,
            "word": w.text,
            "confidence": w.probability,
            "speaker": w.speaker,
        }
        for w in (segment.words if with_words else ())
    ]
    return {"alternatives": [{"words": words}], "channelTag": _channel_tag(segment)}


def _channel_tag(segment: Segment) -> str:
    return str((segment.channel or 0) + 1)


def _dia(transcript: Transcript) -> DiaResult | None:
    if transcript.turns is None:
        return None
    turns: list[TurnResult] = [
        {"start": round(t.start, 3), "end": round(t.end, 3), "speaker": t.speaker}
        for t in transcript.turns
    ]
    return {"turns": turns}


def _emo(transcript: Transcript) -> EmoResult | None:
    if transcript.emotions is None:
        return None
    spans: list[EmotionResult] = [
        {"start": e.start, "end": e.end, "emotional": dict(e.scores), "speaker": e.speaker}
        for e in transcript.emotions
    ]
    return {"segments": spans}


def _errors(transcript: Transcript) -> list[TaskError]:
    return [{"task": e.task, "code": e.code, "message": e.message} for e in transcript.errors]


def _render_failure(problem: Problem) -> Response:
    if problem.status == 500:
        problem = replace(problem, detail=f"Synchronous processing failed: {problem.detail}")
    return render_detail(problem)


ERROR_SHAPES: Mapping[str, RenderError] = {"/v1/process": _render_failure}


_MISSING = {"type": "missing", "loc": ("body", "audio"), "msg": "Field required"}


async def _given(audio: UploadFile | None, file_url: str | None, fetcher: Fetcher | None) -> bytes:
    """The bytes of the upload, or of the file that the request names instead."""
    if file_url is not None:
        if fetcher is None:
            raise NotEnabled("file_url: this service fetches no files.")
        if audio is not None:
            raise InvalidRequest("audio and file_url: one of the two, not both.")
        return await fetcher.fetch(file_url)
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
    """The route of the v1 API; ``route_class`` bounds it, see :func:`api.limits.heavy_route`.

    Without a ``fetcher`` files have to be sent.
    """
    routes = APIRouter(tags=["speech"], route_class=route_class)
    # The first of them is what FastAPI takes for no default.
    absent: Any = PydanticUndefined if fetcher is None else None

    @routes.post(
        "/v1/process",
        summary="Transcribe, diarize and read the emotions of a file",
        response_model=ProcessResponse,
        responses=responses(400, 408, 413, 415, 422, 500, 503, 504),
    )
    async def process(
        *,
        http: Request,
        audio: Annotated[
            UploadFile, File(description="Audio or video in any common container.")
        ] = absent,
        request_json: Annotated[
            str,
            ProcessRequestText(),
            Form(examples=['{"settings": {"tasks": ["transcribe", "diarization"]}}']),
        ],
        file_url: Annotated[
            str | None,
            Form(
                max_length=MAX_URL_CHARS,
                description="Where the file is, instead of the file; off unless the service says.",
            ),
        ] = None,
        idempotency_key: Annotated[
            IdempotencyKey | None, Header(description="A job is queued once for each key.")
        ] = None,
    ) -> Response:
        request = ProcessRequest.parse(request_json)
        if request.async_process and jobs is None:
            raise NotEnabled("async_process: this service runs no job queue.")
        options = request.options(service)
        data = await _given(audio, file_url, fetcher)
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
