"""Serve handles without Ray: each method of a deployment is a function of the test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import ObjectRefStreamEndOfStreamError, RayActorError


class FakeReference:
    """A reference to an object; ``fetched`` once it was brought into this process."""

    def __init__(self) -> None:
        self.fetched = False
        self.value: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, Any, Any]:
        self.fetched = True
        return self.value.__await__()


def _routed(to_replica: bool) -> "Future[None]":
    """What is done once a replica has the call."""
    future: Future[None] = Future()
    if to_replica:
        future.set_result(None)
    return future


class FakeResponse:
    """A ``DeploymentResponse``."""

    def __init__(self, work: Awaitable[Any], *, routed: bool = True) -> None:
        self.cancelled = False
        self._work = work
        self._replica_result_future = _routed(routed)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()

    def cancel(self) -> None:
        self.cancelled = True


class FakeResponseGenerator:
    """A ``DeploymentResponseGenerator``, used as a stream of values or of references.

    As in Ray, an error of the method takes the place of the next value, and the stream ends behind
    it; the death of a replica is in all places that are left.
    """

    def __init__(self, values: AsyncIterator[Any]) -> None:
        self.cancelled = False
        self.consumed = 0
        self.references: list[FakeReference] = []
        self._values = values
        self._replica_result_future = _routed(True)
        self._producing: asyncio.Task[None] | None = None

    async def __anext__(self) -> Any:
        return await anext(self._values)

    async def _to_object_ref_gen(self) -> "FakeResponseGenerator":
        return self

    def _get_next_ref_n(self, count: int) -> list[FakeReference]:
        self.references = [FakeReference() for _ in range(count)]
        self._producing = asyncio.create_task(self._produce())
        return self.references

    def _consume_next_ref_n(self, count: int) -> None:
        assert all(reference.value.done() for reference in self.references[:count])
        self.consumed += count

    async def _produce(self) -> None:
        ended: Exception = ObjectRefStreamEndOfStreamError()
        for reference in self.references:
            try:
                reference.value.set_result(await anext(self._values))
            except RayActorError as death:
                reference.value.set_exception(death)
                ended = death
            except StopAsyncIteration:
                reference.value.set_exception(ended)
            except Exception as error:
                reference.value.set_exception(error)

    def cancel(self) -> None:
        self.cancelled = True
        if self._producing is not None:
            self._producing.cancel()


@dataclass
class FakeMethod:
    """A handle bound to a method; records its calls and their responses.

    Where it is not ``routed`` no replica accepts a call.
    """

    deployment_name: str
    work: Callable[..., Any]
    stream: bool = False
    routed: bool = True
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    responses: list[Any] = field(default_factory=list)

    def options(self, *, stream: bool) -> "FakeMethod":
        return replace(self, stream=stream)

    def remote(self, *args: Any) -> FakeResponse | FakeResponseGenerator:
        self.calls.append(args)
        result = self.work(*args)
        self.responses.append(
            FakeResponseGenerator(result)
            if self.stream
            else FakeResponse(result, routed=self.routed)
        )
        return self.responses[-1]  # type: ignore[no-any-return]


class FakeDeployment:
    """A ``DeploymentHandle``; ``replicas`` answer a broadcast, each a function by method name."""

    def __init__(
        self,
        name: str = "Fake",
        *,
        replicas: list[Callable[[str], Any]] | None = None,
        **methods: Any,
    ) -> None:
        self.deployment_name = name
        self.routed: list[str] = []
        """The model ids that calls were routed by."""
        self._replicas = replicas
        self._methods = {method: FakeMethod("Fake", work) for method, work in methods.items()}

    def __getattr__(self, method: str) -> FakeMethod:
        try:
            return self._methods[method]
        except KeyError:
            raise AttributeError(method) from None

    def options(self, *, multiplexed_model_id: str) -> "FakeDeployment":
        self.routed.append(multiplexed_model_id)
        return self

    def broadcast(self, method: str) -> "_Broadcast":
        return _Broadcast(self._replicas, method)


@dataclass
class _Broadcast:
    replicas: Sequence[Callable[[str], Awaitable[Any]]]
    method: str

    async def _fetch_replica_results_async(self) -> list["_ReplicaResult"]:
        return [_ReplicaResult(replica, self.method) for replica in self.replicas]


@dataclass
class _ReplicaResult:
    replica: Callable[[str], Awaitable[Any]]
    method: str

    async def get_async(self) -> Any:
        return await self.replica(self.method)

    def cancel(self) -> None:
        pass
