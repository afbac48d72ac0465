"""The limits of keys across replicas: counted by an actor, and alone while it is away."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from api.auth.key_file import Key
from api.auth.key_limits import KeyCounter, LimitReached
from deployments import key_limits
from deployments.key_limits import SharedLimits

KEY = Key(b"key", concurrent=1)
WAIT_S = 20.0


class Actor:
    """A counter whose calls take effect at once, as an actor's do in their order."""

    def __init__(self) -> None:
        self.counter = KeyCounter()
        self.renewals = 0

    def __getattr__(self, method: str) -> Any:
        def remote(*args: Any) -> Any:
            self.renewals += method == "renew"
            answer = asyncio.get_running_loop().create_future()
            answer.set_result(getattr(self.counter, method)(*args))
            return answer

        return SimpleNamespace(remote=remote)


class Service:
    """Finds the actor of a deployment, while there is one."""

    def __init__(self) -> None:
        self.actor: Actor | None = None
        self.lookups = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def get_deployment_actor(self, name: str) -> Actor:
        self.lookups += 1
        assert self.may_answer.wait(WAIT_S)
        if self.actor is None:
            raise ValueError(f"no actor {name}")
        return self.actor


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service()
    monkeypatch.setattr(key_limits.serve, "get_deployment_actor", found.get_deployment_actor)
    monkeypatch.setattr(key_limits, "RENEW_S", 0.01)
    return found


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_replicas_share_the_places_of_a_key(service: Service) -> None:
    service.actor = Actor()
    one, other = SharedLimits(), SharedLimits()
    async with one.hold(KEY):
        with pytest.raises(LimitReached):
            async with other.hold(KEY):
                pass
    async with other.hold(KEY):
        pass
    assert service.actor.counter.held() == {}


async def test_a_replica_counts_alone_until_it_finds_the_actor_and_reports_its_places(
    service: Service,
) -> None:
    limits = SharedLimits()
    async with limits.hold(KEY):
        with pytest.raises(LimitReached):
            async with limits.hold(KEY):
                pass
        actor = service.actor = Actor()
        await eventually(lambda: KEY.id in actor.counter.held())
    assert actor.counter.held() == {}


async def test_a_place_that_is_left_while_the_actor_is_looked_up_is_not_renewed(
    service: Service,
) -> None:
    limits = SharedLimits()
    async with limits.hold(KEY):
        service.may_answer.clear()
        lookups = service.lookups
        await eventually(lambda: service.lookups > lookups)
    actor = service.actor = Actor()
    service.may_answer.set()
    await eventually(lambda: actor.renewals > 0)
    assert actor.counter.held() == {}


async def test_a_key_without_limits_is_not_counted(service: Service) -> None:
    async with SharedLimits().hold(Key(b"key")):
        assert service.lookups == 0
