"""The web app of the service, without Ray: routes of all dialects around one SpeechService."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from api import health, models
from api.auth import routes as key_routes
from api.auth.key_file import KeyFile
from api.auth.key_limits import KeyLimits, LocalLimits
from api.auth.middleware import KeyCheck, describe_keys
from api.compat import vosk, whisper_asr, whisper_rest
from api.errors import ErrorBoundary, ErrorShapes
from api.limits import FORM_LIMITS, BodyLimit, heavy_route
from api.live.registry import LiveStreams
from api.openai import realtime
from api.openai import routes as openai
from api.request_id import RequestId
from api.service import SpeechService, with_max_duration
from api.v1 import jobs, live, process
from configs.catalogue import resolve_path
from configs.settings import Dialect, IngressSettings
from infra.fetch import Fetcher
from infra.guarded_http import GuardedHttp
from speech.jobs.desk import JobDesk


def make_app(
    service: SpeechService,
    streams: LiveStreams,
    settings: IngressSettings,
    version: str,
    *,
    job_desk: JobDesk | None = None,
    server_echoes_request_id: bool = False,
    key_limits: KeyLimits | None = None,
    fetcher: Fetcher | None = None,
) -> FastAPI:
    """The app that serves ``service`` and its live ``streams``; limits come from ``settings``.

    ``key_limits`` count the requests of each API key, in this process alone unless told else.
    Without a ``job_desk`` files are only worked on while their client waits.
    ``fetcher`` is the one of ``settings.url_input`` where that is on.
    ``server_echoes_request_id`` is set behind Ray Serve, see :class:`api.request_id.RequestId`.
    The assets of ``/docs`` are local: the page works without the internet.
    """
    shapes = ErrorShapes(
        {
            **process.ERROR_SHAPES,
            **openai.ERROR_SHAPES,
            **models.ERROR_SHAPES,
            **whisper_asr.ERROR_SHAPES,
            **whisper_rest.ERROR_SHAPES,
            **realtime.ERROR_SHAPES,
            **key_routes.ERROR_SHAPES,
        }
    )
    keys = KeyFile(resolve_path(settings.keys_file)) if settings.keys_file else None
    upload_bounds = {
        "": settings.max_upload_bytes,
        openai.PREFIX: min(settings.max_upload_bytes, settings.max_openai_upload_bytes),
    }
    middleware = [
        Middleware(RequestId, server_echoes=server_echoes_request_id),
        Middleware(whisper_rest.Cors),
        Middleware(ErrorBoundary, shapes=shapes),
        Middleware(
            BodyLimit,
            max_bytes=upload_bounds,
            min_bytes_per_s=settings.min_upload_bytes_per_s,
            stall_s=settings.upload_stall_timeout_s,
        ),
    ]
    if keys is not None:
        guard = Middleware(KeyCheck, keys=keys, limits=key_limits or LocalLimits(), shapes=shapes)
        middleware.insert(-1, guard)
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/assets",
        title="speechgraph",
        version=version,
        description="Transcribe, diarize and read emotions in speech.",
        form_limits=FORM_LIMITS,
        middleware=middleware,
        exception_handlers={
            HTTPException: shapes.on_http_exception,
            RequestValidationError: shapes.on_invalid_form,
        },
    )
    heavy = heavy_route(settings.max_concurrent_requests, settings.request_timeout_s)
    if settings.url_input and fetcher is None:
        fetcher = Fetcher(settings.max_upload_bytes, settings.url_timeout_s, GuardedHttp())

    def bounded(dialect: Dialect) -> SpeechService:
        return with_max_duration(service, settings.max_seconds.get(dialect))

    app.include_router(process.router(bounded("v1"), heavy, job_desk, fetcher))
    if job_desk is not None:
        app.include_router(jobs.router(job_desk))
    app.include_router(openai.router(bounded("openai"), settings.openai_aliases, heavy))
    app.include_router(whisper_asr.router(bounded("asr"), settings.asr, heavy))
    app.include_router(
        whisper_rest.router(bounded("whisper"), settings.whisper_rest_aliases, version, heavy)
    )
    app.include_router(models.router(service, settings.openai_aliases))
    app.include_router(health.router(service, version))
    app.include_router(live.router(streams))
    app.include_router(vosk.router(streams))
    app.include_router(realtime.router(streams, settings.openai_aliases))
    if keys is not None:
        app.include_router(key_routes.router(keys))
        describe_keys(app)
    return app
