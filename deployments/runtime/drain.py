"""The state of this replica: Serve does not notify one that is being stopped."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ReplicaState

from deployments.runtime.router_state import keep_last_replicas

logger = logging.getLogger(f"speechgraph.{__name__}")

POLL_S = 0.75
"""Seconds between two looks at the state."""


async def when_draining(then: Callable[[], Awaitable[None]]) -> None:
    """Await ``then`` once this replica is being stopped.

    By a redeployment, a scale-down, or the deletion of the application; in a deleted one the
    handles of this process keep their replicas.
    """
    context = serve.get_replica_context()
    while True:
        await asyncio.sleep(POLL_S)
        try:
            deleted, state = await asyncio.to_thread(
                _state, context.app_name, context.deployment, context.replica_id.unique_id
            )
        except (RayError, RuntimeError, KeyError) as error:
            logger.warning("the state of this replica cannot be read: %r", error)
            continue
        if deleted:
            keep_last_replicas()
        if deleted or state == ReplicaState.STOPPING:
            logger.info("this replica is being stopped")
            await then()
            return


def _state(application: str, deployment: str, replica: str) -> tuple[bool, str | None]:
    """Whether the application is being deleted, and the state of the replica."""
    details = _details(application)
    if details["status"] == ApplicationStatus.DELETING:  # its deployments may be absent already
        return True, None
    # Serve lists no deployments while it builds an update, and none after that has failed.
    replicas = details["deployments"].get(deployment, {"replicas": []})["replicas"]
    return False, next((r["state"] for r in replicas if r["replica_id"] == replica), None)


def deployments_of(application: str) -> dict[str, Any]:
    """Serve's details of each deployment by name; blocks until the controller has answered.

    ``serve.status()`` has neither the ids of replicas nor the options of deployments.
    """
    deployments: dict[str, Any] = _details(application)["deployments"]
    return deployments


def _details(application: str) -> dict[str, Any]:
    client = _get_global_client()
    assert client is not None, "a replica has a client"
    details: dict[str, Any] = client.get_serve_details()["applications"][application]
    return details
