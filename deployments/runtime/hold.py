"""Model replicas outlive the requests and streams of an ingress that is being stopped.

A replica that Serve stops exits once it has no ongoing call; a held one always has.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from speech.background import in_background

logger = logging.getLogger(f"speechgraph.{__name__}")

HOLD_S = 2.0
RENEW_S = 1.0
RELEASE_CHECK_S = 3.0
"""Period in which a model replica that is stopped looks for ongoing calls: longer than an ingress
takes to notice that it is being stopped, and to hold."""
OUTLIVE_S = 5.0
"""How much longer than their callers the model replicas may take to stop."""


class Holdable:
    """Base of the deployments that others call."""

    async def hold(self) -> None:
        """A call that does nothing for HOLD_S."""
        await asyncio.sleep(HOLD_S)


@asynccontextmanager
async def held(handles: Iterable[DeploymentHandle[Any]]) -> AsyncIterator[None]:
    """Hold every replica of the handles meanwhile, and at most HOLD_S longer."""
    tasks = [in_background(partial(_renew, handle), "hold", restart=True) for handle in handles]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def follow_replicas(handles: Iterable[DeploymentHandle[Any]]) -> None:
    """Let the handles learn their replicas now: once the application is deleted they cannot."""
    for handle in handles:
        in_background(partial(_hold, handle), "first call of a handle", restart=False)


async def _renew(handle: DeploymentHandle[Any]) -> None:
    async with asyncio.TaskGroup() as holds:
        while True:
            holds.create_task(_hold(handle))
            await asyncio.sleep(RENEW_S)


async def _hold(handle: DeploymentHandle[Any]) -> None:
    try:
        async with asyncio.timeout(2 * HOLD_S):
            await handle.broadcast("hold").results_async(return_exceptions=True)
    except (RayError, DeploymentUnavailableError, TimeoutError) as error:
        logger.debug("%s is not held: %r", handle.deployment_name, error)
