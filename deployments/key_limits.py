"""The limits of API keys across all ingress replicas: one small actor counts for the service."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.serve.config import DeploymentActorConfig
from ray.serve.exceptions import RayServeException

from api.auth.key_file import Key
from api.auth.key_limits import KeyCounter, LimitReached, Refusal
from speech.background import in_background

logger = logging.getLogger(f"speechgraph.{__name__}")

COUNTER = "key_counter"
LEASE_S = 10.0
"""How long a replica that died still holds its places."""
RENEW_S = 3.0
ANSWER_TIMEOUT_S = 1.0
"""Longest wait for the actor, which answers within milliseconds."""


@ray.remote(num_cpus=0)
class SharedCounter(KeyCounter):
    """Counts for all replicas of the ingress."""

    def __init__(self) -> None:
        KeyCounter.__init__(self, LEASE_S)


def counter_options() -> dict[str, Any]:
    """Options for a deployment whose replicas share the counter; Serve keeps it alive."""
    return {"deployment_actors": [DeploymentActorConfig(name=COUNTER, actor_class=SharedCounter)]}


class SharedLimits:
    """Implements :class:`api.auth.key_limits.KeyLimits` for one of the replicas.

    While the actor cannot be reached, the replica counts alone; afterwards it reports what it holds
    to the actor.
    """

    def __init__(self) -> None:
        self._local = KeyCounter()  # what this replica holds; it is reported with every renewal
        self._actor: ActorHandle[Any] | None = None
        self._lost_at: float | None = None
        self._renewing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """See :class:`api.auth.key_limits.KeyLimits`; a key without limits is not counted."""
        if not key.limited:
            yield
            return
        if self._renewing is None:
            self._renewing = in_background(self._renew, "renewal of key limits", restart=True)
        place = uuid.uuid4().hex
        try:
            refusal = await self._enter(key, place)
            if refusal is not None:
                raise LimitReached(refusal)
            yield
        finally:
            self._local.leave(key.id, place)
            if self._actor is not None:
                self._actor.leave.remote(key.id, place)

    async def _enter(self, key: Key, place: str) -> Refusal | None:
        request = (key.id, key.rate, key.concurrent, place)
        actor = await self._counter()
        if actor is not None:
            try:
                refusal: Refusal | None = await _answer(actor.enter.remote(*request))
            except (RayError, TimeoutError) as error:
                self._lose(error)
            else:
                if refusal is None:
                    self._local.renew({key.id: [place]})
                return refusal
        return self._local.enter(*request)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            actor = await self._counter() if self._local.held() else None
            if actor is not None:
                try:
                    # Read after the wait: a place that was left meanwhile must not be renewed.
                    await _answer(actor.renew.remote(self._local.held()))
                except (RayError, TimeoutError) as error:
                    self._lose(error)

    async def _counter(self) -> "ActorHandle[Any] | None":
        """The actor; once it is lost, None or the next attempt to find it every RENEW_S."""
        recently_lost = self._lost_at is not None and time.monotonic() - self._lost_at < RENEW_S
        if self._actor is None and not recently_lost:
            try:
                finding = asyncio.to_thread(serve.get_deployment_actor, COUNTER)
                self._actor = await _answer(finding)
            except (RayError, RayServeException, ValueError, TimeoutError) as error:
                self._lose(error)
            else:
                self._lost_at = None
        return self._actor

    def _lose(self, error: Exception) -> None:
        if self._lost_at is None:
            logger.warning("this replica counts the requests of keys alone: %r", error)
        self._actor = None
        self._lost_at = time.monotonic()


async def _answer(reference: Any) -> Any:
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        return await reference
