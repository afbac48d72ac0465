"""Calls to all replicas while one of them is frozen."""

import asyncio
import os
import signal

import pytest
from ray import serve

from deployments.live.recogniser import lane_directory
from deployments.runtime.broadcast import answers

pytestmark = pytest.mark.timeout(300)


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.1})
class Lanes:
    """Replicas with the address of a lane."""

    async def lane(self) -> dict[str, object]:
        """A packed LaneAddress whose name is the process."""
        return {
            "replica": str(os.getpid()),
            "host": "127.0.0.1",
            "port": 1,
            "token": "",
            "streams": 0,
            "capacity": 1,
        }


async def test_a_frozen_replica_hides_no_other(cluster: str) -> None:
    handle = await asyncio.to_thread(serve.run, Lanes.bind(), name="lanes", route_prefix="/lanes")
    directory = lane_directory(handle)
    both = sorted(int(address.replica) for address in await directory())
    assert len(both) == 2
    frozen, healthy = both
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert [int(address.replica) for address in await directory()] == [healthy]
        found = await answers(handle, "lane", first_s=5, others_s=1)
        assert [int(address["replica"]) for address in found] == [healthy]
        os.kill(healthy, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await directory()
    finally:
        for replica in both:
            os.kill(replica, signal.SIGCONT)
    assert sorted(int(address.replica) for address in await directory()) == both
    await asyncio.to_thread(serve.delete, "lanes")
