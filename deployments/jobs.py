"""Runners of jobs as a deployment: they lease jobs from the store and run the graph on them."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from api.v1.jobs import result_text
from configs.catalogue import Catalogue, Family
from configs.job_settings import JobSettings
from deployments.runtime.drain import when_draining
from deployments.runtime.graph_service import GraphService
from deployments.runtime.hold import follow_replicas, held
from deployments.runtime.options import serve_options
from deployments.runtime.scaling import FollowJobs
from infra.guarded_http import GuardedHttp, any_address, is_public
from infra.job_audio import JobAudio
from infra.job_store import SqlJobStore
from infra.webhooks import Webhooks
from speech.background import in_background
from speech.errors import NotEnabled
from speech.jobs.desk import JobBounds, JobDesk
from speech.jobs.job_worker import JobRules, JobWorker, Progress
from speech.jobs.states import Job
from speech.pipeline import ProcessOptions
from speech.transcript import Transcript

logger = logging.getLogger(f"speechgraph.{__name__}")

FOLLOW_S = 1.0
"""Seconds between two queries of the recognisers' progress."""
IDLE_S = 0.25
"""In this time a worker without jobs stops; one that takes longer needs the models."""
LAST_WRITES_S = 5.0
"""Part of the drain that is reserved for releasing jobs."""


class JobRunner:
    """Runs jobs through the graph of the ingress, as batch calls that yield to interactive ones."""

    def __init__(
        self,
        settings: JobSettings,
        catalogue: Catalogue,
        handles: Mapping[str, DeploymentHandle[Any]],
        defaults: Mapping[Family, str],
        timeouts_s: Mapping[str, float],
        default_transcriber: str,
        max_seconds: float | None,
    ) -> None:
        self._settings = settings
        self._max_seconds = max_seconds
        self._service = GraphService(catalogue, handles, defaults, timeouts_s, default_transcriber)
        self._store = _store(settings)
        self._worker = JobWorker(
            self._store,
            _audio(settings),
            self._work,
            _rules(settings),
            settings.concurrency,
            _webhooks(settings),
        )
        self._models = list(handles.values())
        self._running: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None

    async def _work(self, job: Job, data: bytes, progress: Progress) -> str:
        follow = in_background(
            partial(self._follow, job.id, progress), f"progress of job {job.id}", restart=True
        )

        def process(options: ProcessOptions) -> Awaitable[Transcript]:
            options = replace(options, max_seconds=self._max_seconds)
            return self._service.process_job(job.id, data, options, progress.begin)

        try:
            return await result_text(job, self._service, process)
        finally:
            follow.cancel()

    async def _follow(self, job: str, progress: Progress) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            done = await self._service.seconds_done()
            progress.seconds_done = done.get(job, progress.seconds_done)

    async def check_health(self) -> None:
        """Called by Serve before the replica is ready, which is when it starts to work."""
        if self._running is None:
            self._running = asyncio.create_task(self._worker.run())
            follow_replicas(self._models)
            in_background(partial(when_draining, self.drain), "watch of the state", restart=True)
        elif self._draining is None and self._running.done():
            self._running.result()

    async def record_autoscaling_stats(self) -> Mapping[str, float]:
        """The input of :class:`deployments.runtime.scaling.FollowJobs`."""
        if self._draining is not None:  # nobody may take the jobs that this drain releases
            return {"jobs": 0}
        backlog = await asyncio.to_thread(self._store.backlog)
        return {"jobs": backlog.queued + backlog.processing}

    async def drain(self) -> None:
        """Take no more jobs; finish those that run, or release them. The models are held meanwhile.

        Cancelling a call does not end the drain.
        """
        if self._running is None:
            return
        if self._draining is None:
            self._draining = in_background(
                partial(self._drain, self._running), "drain", restart=False
            )
        await asyncio.shield(self._draining)

    async def _drain(self, running: asyncio.Task[None]) -> None:
        self._worker.stop()
        left_s = self._settings.lifecycle.drain_timeout_s - LAST_WRITES_S - IDLE_S
        ended, _ = await asyncio.wait({running}, timeout=IDLE_S)
        if not ended and left_s > 0:
            async with held(self._models):
                await asyncio.wait({running}, timeout=left_s)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    async def __del__(self) -> None:
        """Called by Serve when the replica is stopped."""
        await self.drain()
        self._store.close()


def job_options(settings: JobSettings) -> dict[str, Any]:
    """Options for ``serve.deployment(JobRunner, **options)``: replicas follow the backlog."""
    options = serve_options(settings, settings.concurrency)
    options["autoscaling_config"]["policy"] = {
        "policy_function": FollowJobs,
        "policy_kwargs": {"concurrency": settings.concurrency},
    }
    return options


def job_desk(settings: JobSettings) -> JobDesk:
    """Where the ingress submits jobs."""
    webhooks = _webhooks(settings)

    def no_webhooks(url: str) -> None:
        raise NotEnabled("webhook_url: this service has no secret to sign webhooks with.")

    return JobDesk(
        _store(settings),
        _audio(settings),
        JobBounds(settings.max_queued, settings.max_stored_mb * 1024**2),
        no_webhooks if webhooks is None else webhooks.check,
    )


def _store(settings: JobSettings) -> SqlJobStore:
    """The store of all replicas. Raises ValueError where they could not share it."""
    if settings.database is not None:
        return SqlJobStore(settings.database.get_secret_value())
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1:
        raise ValueError("jobs.database: SQLite serves one machine, set the URL of a PostgreSQL")
    return SqlJobStore(f"sqlite:///{Path(settings.directory) / 'jobs.sqlite3'}")


def _audio(settings: JobSettings) -> JobAudio:
    return JobAudio(settings.storage or str(Path(settings.directory) / "audio"))


def _rules(settings: JobSettings) -> JobRules:
    names = JobRules.__dataclass_fields__
    return JobRules(**{name: getattr(settings, name) for name in names})


def _webhooks(settings: JobSettings) -> Webhooks | None:
    if settings.webhook_secret is None:
        return None
    return Webhooks(
        settings.webhook_secret.get_secret_value(),
        settings.webhook_timeout_s,
        GuardedHttp(any_address if settings.webhook_private_addresses else is_public),
    )
