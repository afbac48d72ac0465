"""OpenAI's audio API: ``/v1/audio/transcriptions`` and ``/translations``, and our diarization."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, UploadFile
from fastapi import Form as FormBody
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from api.errors import RenderError
from api.limits import within_deadline
from api.openai.errors import RESPONSES, render_error
from api.openai.events import EventStream
from api.openai.requests import Aliases, DiarizationForm, TranscriptionForm, TranslationForm
from api.openai.responses import (
    DiarizationResult,
    Transcription,
    TranscriptionDiarized,
    TranscriptionVerbose,
    diarization_answer,
    speech_answer,
)
from api.service import SpeechService
from speech.errors import EmptyAudio

PREFIX = "/v1/audio/"
ERROR_SHAPES: Mapping[str, RenderError] = {PREFIX: render_error}

MULTIPART = "multipart/form-data"


def router(service: SpeechService, aliases: Aliases, route_class: type[APIRoute]) -> APIRouter:
    """The audio routes; ``aliases`` map OpenAI's model names.

    ``route_class`` bounds them, see :func:`api.limits.heavy_route`.
    """
    routes = APIRouter(
        prefix=PREFIX.rstrip("/"),
        tags=["openai"],
        route_class=route_class,
        responses=RESPONSES,
        # A list is sent as one field for each value.
        form_limits={"max_fields": 32},
    )

    @routes.post(
        "/transcriptions",
        summary="Transcribe a file",
        response_model=Transcription | TranscriptionVerbose | TranscriptionDiarized,
        responses=_also("text/plain", "text/vtt", "text/event-stream"),
    )
    async def transcribe(
        request: Request, form: Annotated[TranscriptionForm, FormBody(media_type=MULTIPART)]
    ) -> Response:
        options = form.options(service, aliases)
        data = await _data_of(form.file)
        if form.stream:
            work = service.stream(data, options)
            return EventStream(work, form, partial(within_deadline, request))
        transcript = await service.process(data, options)
        return await run_in_threadpool(speech_answer, transcript, form)

    @routes.post(
        "/translations",
        summary="Translate a file to English",
        response_model=Transcription | TranscriptionVerbose,
        responses=_also("text/plain", "text/vtt"),
    )
    async def translate(
        form: Annotated[TranslationForm, FormBody(media_type=MULTIPART)],
    ) -> Response:
        options = form.options(service, aliases)
        transcript = await service.process(await _data_of(form.file), options)
        return await run_in_threadpool(speech_answer, transcript, form)

    @routes.post(
        "/diarization",
        summary="Diarize a file",
        response_model=DiarizationResult,
        responses=_also("text/plain"),
    )
    async def diarize(
        form: Annotated[DiarizationForm, FormBody(media_type=MULTIPART)],
    ) -> Response:
        options = form.options(service, aliases)
        transcript = await service.process(await _data_of(form.file), options)
        return diarization_answer(transcript, form)

    return routes


async def _data_of(file: UploadFile) -> bytes:
    """The bytes of the upload; its temporary file is closed before the models run."""
    data = await file.read()
    await file.close()
    if not data:
        raise EmptyAudio("The file is empty.")
    return data


def _also(*media_types: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {} for media_type in media_types}}}
