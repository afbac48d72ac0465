"""Callers that are being stopped keep the replicas of models busy."""

import asyncio
from typing import Any

from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.runtime.hold import HOLD_S, RELEASE_CHECK_S, RENEW_S, held
from tests.unit.virtual_time import run_in_virtual_time


class Replica:
    """A deployment of one replica; the times at which calls of ``hold`` began."""

    deployment_name = "OnnxAsr"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[float] = []

    def broadcast(self, method: str) -> "Replica":
        assert method == "hold"
        return self

    async def results_async(self, *, return_exceptions: bool) -> list[Any]:
        self.calls.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error
        await asyncio.sleep(HOLD_S)
        return []


def longest_gap(replica: Replica, until: float) -> float:
    """The longest time without a call, from the first one on."""
    gap, busy_until = 0.0, replica.calls[0]
    for begin in [*replica.calls, until]:
        gap = max(gap, begin - busy_until)
        busy_until = max(busy_until, begin + HOLD_S)
    return gap


def test_a_held_replica_always_has_an_ongoing_call() -> None:
    replica = Replica()

    async def work() -> None:
        async with held([replica]):  # type: ignore[list-item]
            await asyncio.sleep(20)

    run_in_virtual_time(work())
    assert replica.calls[0] < RELEASE_CHECK_S
    assert longest_gap(replica, 20.0) == 0.0


def test_replicas_are_released_when_the_caller_has_ended() -> None:
    replica = Replica()

    async def work() -> None:
        async with held([replica]):  # type: ignore[list-item]
            await asyncio.sleep(5)
        await asyncio.sleep(10)

    run_in_virtual_time(work())
    assert max(replica.calls) <= 5.0


def test_a_deployment_without_replicas_is_asked_again() -> None:
    replica = Replica(DeploymentUnavailableError(DeploymentID("OnnxAsr", "app")))

    async def work() -> None:
        async with held([replica]):  # type: ignore[list-item]
            await asyncio.sleep(5.5 * RENEW_S)

    run_in_virtual_time(work())
    assert len(replica.calls) == 6
