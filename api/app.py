"""The web app of the service, without Ray: routes of all dialects around one SpeechService."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from api import health, index, models
from api.auth import routes as key_routes
from api.auth.key_file import KeyFile
from api.auth.key_limits import KeyLimits, LocalLimits
from api.auth.middleware import KeyCheck, describe_keys
from api.compat import vosk, whisper_asr, whisper_rest
from api.cors import cors
from api.docs import complete_forms, describe_sockets
from api.errors import ErrorBoundary, ErrorShapes
from api.head import HeadAsGet
from api.limits import FORM_LIMITS, BodyLimit, Places, heavy_route
from api.live.registry import LiveStreams
from api.live.websocket import SocketPaths
from api.openai import realtime_routes
from api.openai import routes as openai
from api.request_id import RequestId
from api.service import SpeechService, with_max_duration
from api.v1 import jobs, live, process
from api.wrong_paths import WrongPath
from configs.catalogue import resolve_path
from configs.settings import Dialect, IngressSettings
from infra.fetch import Fetcher
from infra.guarded_http import GuardedHttp
from speech.jobs.desk import JobDesk

SHAPES = ErrorShapes(
    {
        **process.ERROR_SHAPES,
        **openai.ERROR_SHAPES,
        **realtime_routes.ERROR_SHAPES,
        **whisper_asr.ERROR_SHAPES,
        **whisper_rest.ERROR_SHAPES,
        **models.ERROR_SHAPES,
        **key_routes.ERROR_SHAPES,
    }
)


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
    places: Places | None = None,
) -> FastAPI:
    """The app that serves ``service`` and its live ``streams``; limits come from ``settings``.

    ``key_limits`` count the requests of each API key, by default in this process alone.
    Without a ``job_desk`` no job can be queued. ``fetcher`` is by default the one of
    ``settings.url_input``, where that is on. ``places`` are those of the requests that run at once.
    ``server_echoes_request_id`` is set behind Ray Serve, see :class:`api.request_id.RequestId`.
    The assets of ``/docs`` are local: the page works without the internet.
    """
    keys = KeyFile(resolve_path(settings.keys_file)) if settings.keys_file else None
    if settings.url_input and fetcher is None:
        fetcher = Fetcher(settings.max_upload_bytes, settings.url_timeout_s, GuardedHttp())
    heavy = heavy_route(
        places or Places(settings.max_concurrent_requests), settings.request_timeout_s
    )

    def bounded(dialect: Dialect) -> SpeechService:
        return with_max_duration(service, settings.max_seconds.get(dialect))

    openai_aliases, rest_aliases = settings.openai_aliases, settings.whisper_rest_aliases
    routers = [
        process.router(bounded("v1"), heavy, job_desk, fetcher),
        *([jobs.router(job_desk)] if job_desk is not None else ()),
        openai.router(bounded("openai"), openai_aliases, heavy),
        whisper_asr.router(bounded("asr"), settings.asr, heavy),
        whisper_rest.router(bounded("whisper"), rest_aliases, version, heavy),
        models.router(service, openai_aliases),
        health.router(service, streams.sessions, version),
        index.router(version),
        live.router(streams),
        vosk.router(streams, settings.vosk),
        realtime_routes.router(streams, openai_aliases),
        *([key_routes.router(keys)] if keys is not None else ()),
    ]
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/assets",
        title="speechgraph",
        version=version,
        description="Transcribe, diarize and read emotions in speech.",
        openapi_tags=describe_sockets(routers),
        form_limits=FORM_LIMITS,
        middleware=_middleware(settings, server_echoes_request_id, keys, key_limits),
        exception_handlers={
            HTTPException: SHAPES.on_http_exception,
            RequestValidationError: SHAPES.on_invalid_form,
        },
    )
    for router in routers:
        app.include_router(router)
    app.router.default = WrongPath(app.routes, SHAPES)
    complete_forms(app)
    if keys is not None:
        describe_keys(app)
    return app


def _middleware(
    settings: IngressSettings,
    server_echoes_request_id: bool,
    keys: KeyFile | None,
    key_limits: KeyLimits | None,
) -> list[Middleware]:
    """The middleware, the outermost first."""
    limits = key_limits or LocalLimits()
    max_bytes = {
        "": settings.max_upload_bytes,
        openai.PREFIX: min(settings.max_upload_bytes, settings.max_openai_upload_bytes),
        realtime_routes.PATH: realtime_routes.MAX_BODY_BYTES,
    }
    return [
        Middleware(RequestId, server_echoes=server_echoes_request_id),
        Middleware(SocketPaths),
        Middleware(whisper_rest.Cors),
        *cors(settings.cors_origins),
        Middleware(ErrorBoundary, shapes=SHAPES),
        Middleware(KeyCheck, keys=keys, limits=limits, shapes=SHAPES),
        Middleware(HeadAsGet),
        Middleware(
            BodyLimit,
            max_bytes=max_bytes,
            min_bytes_per_s=settings.min_upload_bytes_per_s,
            stall_s=settings.upload_stall_timeout_s,
        ),
    ]
