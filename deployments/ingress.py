"""The HTTP surface as a deployment: the Ray-free app of ``api`` around the graph's service."""

import asyncio
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from api.app import make_app
from api.limits import Places
from api.live.registry import LiveStreams
from configs.catalogue import Catalogue, Family
from configs.job_settings import JobSettings
from configs.settings import IngressSettings, LiveSettings
from deployments.jobs import job_desk
from deployments.key_limits import SharedLimits
from deployments.live.wiring import live_models, live_ports, local_models, recognition_lag_s
from deployments.runtime.drain import when_draining
from deployments.runtime.flow_control import FlowControl
from deployments.runtime.freed_memory import return_freed_memory
from deployments.runtime.graph_service import GraphService
from deployments.runtime.hold import follow_replicas, held
from deployments.runtime.metrics import observe_devices, observe_sessions
from deployments.runtime.model_access import ModelFiles
from deployments.runtime.socket_limits import limit_sockets
from speech.background import in_background

DELIVERY_S = 0.5
"""What the last answers get to pass the proxy, which may be stopped after a drain."""


@serve.ingress()
class Ingress:
    """Serves every dialect and runs the graph."""

    def __init__(
        self,
        settings: IngressSettings,
        catalogue: Catalogue,
        handles: Mapping[str, DeploymentHandle[Any]],
        defaults: Mapping[Family, str],
        timeouts_s: Mapping[str, float],
        live: LiveSettings | None,
        files: ModelFiles,
        jobs: JobSettings | None,
        decoder_max_seconds: float,
    ) -> None:
        limit_sockets()  # behind HAProxy sockets end here, also where Serve's callback is not set
        self._settings = settings
        self._job_desk = None if jobs is None else job_desk(jobs)
        local = local_models(live, settings, files)
        self._local_stats = local.stats if local else list
        self._service = GraphService(
            catalogue,
            handles,
            defaults,
            timeouts_s,
            settings.default_transcriber,
            files,
            local_stats=self._local_stats,
            plain_wav_s=decoder_max_seconds,
        )
        self._ports = live_ports(live, settings, files, catalogue, handles, timeouts_s, local)
        self._streams = LiveStreams(
            self._service,
            self._ports,
            settings.sessions,
            live_models(live, settings, defaults),
            observe_sessions,
        )
        self._places = Places(settings.max_concurrent_requests)
        self._models = [handle for name, handle in handles.items() if name != "jobs"]
        self._draining: asyncio.Task[None] | None = None

    def cache_stats(self) -> list[dict[str, Any]]:
        """The streaming models that run in this process."""
        return self._local_stats()

    async def record_autoscaling_stats(self) -> Mapping[str, float]:
        """The input of :class:`deployments.runtime.scaling.FollowRequests`.

        Serve calls it about every second, so gauges are set here too: Ray exports none that was not
        set for some seconds.
        """
        observe_devices(self._local_stats())
        observe_sessions(self._streams.sessions.count)
        return {"lag_s": recognition_lag_s(self._ports)}

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        follow_replicas(self._models)
        in_background(partial(when_draining, self.drain), "watch of the state", restart=True)
        in_background(return_freed_memory, "return of freed memory", restart=True)
        app = make_app(
            self._service,
            self._streams,
            self._settings,
            version("speechgraph"),
            job_desk=self._job_desk,
            server_echoes_request_id=True,
            key_limits=SharedLimits(),
            places=self._places,
        )
        return FlowControl(app)

    async def drain(self) -> None:
        """Admit nothing more; returns when every stream and request has ended.

        The models are held until then. Cancelling a call does not end the drain.
        """
        if self._draining is None:
            self._draining = in_background(self._drain, "drain", restart=False)
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        idle = self._streams.sessions.idle and self._places.idle
        ending = asyncio.gather(self._streams.sessions.drain(), self._places.drain())
        if idle:
            await ending
            return
        async with held(self._models):
            await ending
        await asyncio.sleep(DELIVERY_S)
