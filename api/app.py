"""The web app of the service, without Ray: routes of all dialects around one SpeechService."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from api import health, jobs, live, models, openai, process, vosk
from api.errors import ErrorBoundary, ErrorShapes
from api.limits import FORM_LIMITS, BodyLimit, heavy_route
from api.request_id import RequestId
from api.service import SpeechService
from api.streams import LiveStreams
from configs.settings import IngressSettings
from speech.jobs import JobDesk


def make_app(
    service: SpeechService,
    streams: LiveStreams,
    settings: IngressSettings,
    version: str,
    *,
    job_desk: JobDesk | None = None,
    server_echoes_request_id: bool = False,
) -> FastAPI:
    """The app that serves ``service`` and its live ``streams``; limits come from ``settings``.

    Without a ``job_desk`` files are only worked on while their client waits.
    ``server_echoes_request_id`` is set behind Ray Serve, see :class:`api.request_id.RequestId`.
    The assets of ``/docs`` are local: the page works without the internet.
    """
    shapes = ErrorShapes({**process.ERROR_SHAPES, **openai.ERROR_SHAPES, **models.ERROR_SHAPES})
    upload_bounds = {
        "": settings.max_upload_bytes,
        openai.PREFIX: min(settings.max_upload_bytes, settings.max_openai_upload_bytes),
    }
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/assets",
        title="speechgraph",
        version=version,
        description="Transcribe, diarize and read emotions in speech.",
        form_limits=FORM_LIMITS,
        middleware=[
            Middleware(RequestId, server_echoes=server_echoes_request_id),
            Middleware(ErrorBoundary, shapes=shapes),
            Middleware(BodyLimit, max_bytes=upload_bounds),
        ],
        exception_handlers={
            HTTPException: shapes.on_http_exception,
            RequestValidationError: shapes.on_invalid_form,
        },
    )
    heavy = heavy_route(settings.max_concurrent_requests, settings.request_timeout_s)
    app.include_router(process.router(service, heavy, job_desk))
    if job_desk is not None:
        app.include_router(jobs.router(job_desk))
    app.include_router(openai.router(service, settings.openai_aliases, heavy))
    app.include_router(models.router(service, settings.openai_aliases))
    app.include_router(health.router(service, version))
    app.include_router(live.router(streams))
    app.include_router(vosk.router(streams))
    return app
