"""Calls to every replica of a deployment, of which some may not answer."""

import asyncio
import logging
from typing import Any

from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(f"speechgraph.{__name__}")


async def answers(
    handle: DeploymentHandle[Any], method: str, *, first_s: float, others_s: float
) -> list[Any]:
    """What the replicas answer: the first within ``first_s``, the others ``others_s`` later.

    A replica that fails, or is late, is left out. Raises TimeoutError when none answers and one is
    late, DeploymentUnavailableError when there is none.
    """
    async with asyncio.timeout(first_s):
        # ``results_async`` of Serve 2.60 returns all answers or none: a frozen replica would hide
        # the others. This is its first half.
        results = await handle.broadcast(method)._fetch_replica_results_async()
    if not results:
        return []
    calls = {asyncio.ensure_future(result.get_async()): result for result in results}
    try:
        done, pending = await asyncio.wait(
            calls, timeout=first_s, return_when=asyncio.FIRST_COMPLETED
        )
        if done and pending:
            more, pending = await asyncio.wait(pending, timeout=others_s)
            done |= more
    finally:
        for call, result in calls.items():
            if not call.done():
                call.cancel()
                result.cancel()
    # In the order of the replicas.
    errors = {call: call.exception() for call in calls if call in done}
    for error in filter(None, errors.values()):
        logger.warning("%s of %s failed: %r", method, handle.deployment_name, error)
    if pending:
        logger.warning(
            "%d of %d replicas of %s do not answer %s",
            len(pending),
            len(calls),
            handle.deployment_name,
            method,
        )
    found = [call.result() for call, error in errors.items() if error is None]
    if pending and not found:
        raise TimeoutError(f"no replica of {handle.deployment_name} answers {method}")
    return found
