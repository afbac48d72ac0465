"""The service behind every dialect: the graph on the deployments, and the state of replicas."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Set
from itertools import chain
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from api.service import FAMILIES, DeploymentState
from configs.catalogue import Catalogue, Family
from deployments.runtime.broadcast import answers
from deployments.runtime.drain import deployments_of
from deployments.runtime.handle_ports import (
    ServedDecoder,
    ServedDiarizer,
    ServedEmotions,
    ServedTranscriber,
)
from deployments.runtime.metrics import observe_stage
from deployments.runtime.model_access import ModelFiles
from deployments.runtime.router_state import ABSENT_S
from speech.pipeline import ProcessOptions, SpeechGraph, Stage, Task
from speech.transcript import Segment, Transcript

logger = logging.getLogger(f"speechgraph.{__name__}")

STATS_TIMEOUT_S = 5.0
STATUS_AGE_S = 1.0
"""Readiness is that of the Serve controller, at most so many seconds old."""


class GraphService:
    """Implements :class:`api.service.SpeechService` on the deployments of one application.

    ``defaults`` has the default model of each family that runs here, ``timeouts_s`` the longest
    call of each deployment. ``files`` are those of this machine; None: no model has any.
    ``local_stats`` are the models that run in this process. ``plain_wav_s``: see
    :class:`deployments.runtime.handle_ports.ServedDecoder`; jobs leave all files to the decoder.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        handles: Mapping[str, DeploymentHandle[Any]],
        defaults: Mapping[Family, str],
        timeouts_s: Mapping[str, float],
        default_transcriber: str,
        files: ModelFiles | None = None,
        local_stats: Callable[[], list[dict[str, Any]]] = list,
        plain_wav_s: float = 0.0,
    ) -> None:
        self._catalogue = catalogue
        self._handles = handles
        self._defaults = defaults
        self._default_transcriber = default_transcriber
        self._states: tuple[float, Mapping[str, DeploymentState]] = (float("-inf"), {})
        self._timeouts_s = timeouts_s
        self._files = files
        self._local_stats = local_stats
        self._plain_wav_s = plain_wav_s
        self._graph = self._graph_for(None)

    def _graph_for(
        self, job: str | None, begin: Callable[[Stage], None] = lambda stage: None
    ) -> SpeechGraph:
        handles, timeouts_s = self._handles, self._timeouts_s
        # A job waits for the replicas that an update starts; a client gets 503.
        absence_s = ABSENT_S if job is None else math.inf
        plain_wav_s = self._plain_wav_s if job is None else 0.0
        diarization_s, emotion_s = (timeouts_s.get(f, 0.0) for f in ("diarization", "emotion"))
        return SpeechGraph(
            ServedDecoder(handles["decoder"], timeouts_s["decoder"], job, absence_s, plain_wav_s),
            ServedTranscriber(self._catalogue, handles, timeouts_s, job, absence_s),
            ServedDiarizer(handles.get("diarization"), diarization_s, job, absence_s),
            ServedEmotions(handles.get("emotion"), emotion_s, job, absence_s),
            observe_stage,
            begin,
        )

    @property
    def catalogue(self) -> Catalogue:
        """All models of the catalogue, served here or not."""
        return self._catalogue

    @property
    def families(self) -> Set[Family]:
        """The families whose deployment runs in this graph."""
        return self._defaults.keys()

    @property
    def default_models(self) -> Mapping[Task, str]:
        """The model of each task for requests that name none."""
        tasks: dict[Task, str] = {"transcribe": self._default_transcriber}
        if "diarization" in self._defaults:
            tasks["diarization"] = self._defaults["diarization"]
        if "emotion" in self._defaults:
            tasks["emotion"] = self._defaults["emotion"]
        return tasks

    async def process(self, data: bytes, options: ProcessOptions) -> Transcript:
        """Run the graph on resolved models. Raises SpeechError."""
        return await self._graph.process(data, options)

    async def process_job(
        self, job: str, data: bytes, options: ProcessOptions, begin: Callable[[Stage], None]
    ) -> Transcript:
        """The same as batch calls; ``begin`` is called with each stage."""
        return await self._graph_for(job, begin).process(data, options)

    async def seconds_done(self) -> Mapping[str, float]:
        """Seconds of audio recognised so far, by job, of the jobs being recognised."""
        recognisers = FAMILIES["transcribe"] & self.families
        found = await asyncio.gather(*(self._ask_all(family, "progress") for family in recognisers))
        return dict(chain.from_iterable(jobs.items() for replicas in found for jobs in replicas))

    def stream(
        self, data: bytes, options: ProcessOptions
    ) -> AsyncGenerator[Segment | Transcript, None]:
        """See :meth:`speech.pipeline.SpeechGraph.stream`."""
        return self._graph.stream(data, options)

    async def deployment_states(self) -> Mapping[str, DeploymentState]:
        """See :meth:`api.service.SpeechService.deployment_states`."""
        asked_at, states = self._states
        if time.monotonic() - asked_at > STATUS_AGE_S:
            found = await asyncio.to_thread(_states_of, serve.get_replica_context().app_name)
            # Serve lists none while it builds an update, and none after that has failed: what ran
            # before runs on.
            states = found or states
            self._states = (time.monotonic(), states)
        return states

    async def present_models(self) -> Set[str]:
        """See :meth:`api.service.SpeechService.present_models`."""
        return await asyncio.to_thread(self._present)

    def _present(self) -> Set[str]:
        files = self._files
        return {m.id for m in self._catalogue.models if files is not None and files.has(m)}

    async def cache_stats(self, *, required_only: bool = False) -> list[dict[str, Any]]:
        """The loaded models of all replicas that answer within STATS_TIMEOUT_S.

        See :meth:`api.service.SpeechService.cache_stats`.
        """
        asked = [*self._defaults, *(["live"] if "live" in self._handles else [])]
        if required_only:
            states = await self.deployment_states()
            required = {name for name, state in states.items() if state.required}
            asked = [name for name in asked if self._handles[name].deployment_name in required]
        found = await asyncio.gather(*(self._ask_all(name, "cache_stats") for name in asked))
        rows = [entry for replicas in found for entries in replicas for entry in entries]
        return rows + self._local_stats()

    async def _ask_all(self, family: str, method: str) -> list[Any]:
        """The answer of every replica that answers."""
        try:
            return await answers(
                self._handles[family], method, first_s=STATS_TIMEOUT_S, others_s=STATS_TIMEOUT_S
            )
        except (TimeoutError, RayError, DeploymentUnavailableError) as error:
            logger.warning("no %s of %s: %s", method, family, error)
            return []


def _states_of(application: str) -> dict[str, DeploymentState]:
    return {
        name: DeploymentState(
            running=any(r["state"] == ReplicaState.RUNNING for r in deployment["replicas"]),
            required=_min_replicas(deployment["deployment_config"]) > 0,
        )
        for name, deployment in deployments_of(application).items()
    }


def _min_replicas(config: Mapping[str, Any]) -> int:
    scaling = config.get("autoscaling_config")
    replicas: int = scaling["min_replicas"] if scaling else config["num_replicas"]
    return replicas
