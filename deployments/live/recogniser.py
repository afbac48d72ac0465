"""Recognisers of live streams as a deployment; streams arrive on lanes, not as Serve calls."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from configs.settings import LiveSettings
from deployments.live.lane_client import Directory
from deployments.live.lane_protocol import LaneAddress
from deployments.live.lane_server import LaneServer
from deployments.runtime.broadcast import answers
from deployments.runtime.hold import Holdable
from deployments.runtime.metrics import observe_devices
from deployments.runtime.model_access import (
    ModelFiles,
    hardware,
    streaming_engine,
    streaming_models,
)
from deployments.runtime.options import model_options, threads
from deployments.runtime.scaling import FollowStreams

_CALLS_AT_ONCE = 64
"""Ingresses that request the address at the same time."""
_FIRST_ADDRESS_S, _OTHER_ADDRESSES_S = 1.5, 0.4
"""A stream that opens waits for the addresses: a frozen replica may not delay it for long."""


class Live(Holdable):
    """Recognises live speech, frame by frame, with the streaming models of the catalogue."""

    def __init__(self, settings: LiveSettings, files: ModelFiles) -> None:
        self._settings = settings
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.onnx_asr.local_recognizer import LocalRecognizer

        self._models = streaming_models(files, hardware(settings))
        for model in settings.preloaded:
            streaming_engine(self._models, model)
        self._recognizer = LocalRecognizer(
            partial(streaming_engine, self._models),
            tick_s=settings.tick_s,
            max_streams=settings.max_streams,
            threads=threads(settings),
        )
        self._server = LaneServer(self._recognizer, ray.util.get_node_ip_address())

    async def lane(self) -> dict[str, Any]:
        """A packed :class:`deployments.live.lane_protocol.LaneAddress`."""
        address = LaneAddress(
            replica=serve.get_replica_context().replica_id.unique_id,
            host=self._server.host,
            port=self._server.port,
            token=self._server.token,
            streams=self._server.streams,
            capacity=self._settings.max_streams,
        )
        return asdict(address)

    def cache_stats(self) -> list[dict[str, Any]]:
        """One entry per loaded model; its use is that of its load, not of its streams."""
        return self._models.stats()

    async def check_health(self) -> None:
        """Called by Serve before the replica is ready, which is when it starts to listen."""
        await self._server.start()
        observe_devices(self._models.stats())

    async def record_autoscaling_stats(self) -> Mapping[str, float]:
        """The input of :class:`deployments.runtime.scaling.FollowStreams`."""
        return {"streams": self._server.streams, "lag_s": self._recognizer.lag_s()}


def live_options(settings: LiveSettings, callers_drain_s: float) -> dict[str, Any]:
    """Options for ``serve.deployment(Live, **options)``: replicas follow streams, not calls."""
    options = model_options(settings, _CALLS_AT_ONCE, callers_drain_s)
    options["autoscaling_config"]["policy"] = {
        "policy_function": FollowStreams,
        "policy_kwargs": {"target_streams": settings.target_streams},
    }
    return options


def lane_directory(handle: DeploymentHandle[Any]) -> Directory:
    """The addresses of the replicas of :class:`Live` that answer; TimeoutError if none does."""

    async def addresses() -> list[LaneAddress]:
        found = await answers(handle, "lane", first_s=_FIRST_ADDRESS_S, others_s=_OTHER_ADDRESSES_S)
        return [LaneAddress(**address) for address in found]

    return addresses
