"""A call to another deployment: a deadline, one retry when its replica dies, domain errors."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ray import ObjectRef
from ray.exceptions import (
    ObjectLostError,
    ObjectRefStreamEndOfStreamError,
    RayActorError,
    RayTaskError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import (
    DeploymentHandle,
    DeploymentResponse,
    DeploymentResponseGenerator,
)

from deployments.runtime.router_state import absent_s
from engines.out_of_memory import is_out_of_memory
from speech.errors import (
    DeadlineExceeded,
    EngineFailed,
    ModelUnavailable,
    OutOfMemory,
    Overloaded,
    SpeechError,
)

logger = logging.getLogger(f"speechgraph.{__name__}")

ABSENCE_CHECK_S = 1.0
"""Seconds between two looks of a call that no replica has accepted yet."""

T = TypeVar("T")


class ReplicaDied(Exception):
    """The replica died while it worked on this request."""


async def call(
    handle: DeploymentHandle[Any],
    *args: Any,
    timeout_s: float,
    longest_absence_s: float = math.inf,
) -> Any:
    """The value of a call of a bound handle method.

    Inference has no side effects, so a request whose replica died is sent once more. Cancelling
    this coroutine, or running out of ``timeout_s``, cancels the call in its replica.

    Raises the domain's error that the replica raised, OutOfMemory or EngineFailed in the place of
    any other, Overloaded, DeadlineExceeded, ModelUnavailable when no replica has run for longer
    than ``longest_absence_s`` or the node that kept an argument died, and ReplicaDied when the
    second replica died as well.
    """
    return await _with_retry(handle, args, timeout_s, longest_absence_s, _value)


async def stream(
    handle: DeploymentHandle[Any],
    *args: Any,
    timeout_s: float,
    longest_absence_s: float = math.inf,
) -> AsyncGenerator[Any, None]:
    """The values of a generator method; ``timeout_s`` bounds the wait for each of them.

    Closing the generator cancels the call in its replica. Raises what :func:`call` does, and
    ReplicaDied when the first replica died: the caller knows what to do with the values so far.
    """
    name = handle.deployment_name
    response: Any = handle.options(stream=True).remote(*args)
    try:
        with _domain_errors(name):
            while True:
                try:
                    async with asyncio.timeout(timeout_s):
                        await _routed(response, name, longest_absence_s)
                        value = await anext(response)
                except TimeoutError:
                    raise _late(name, timeout_s) from None
                except StopAsyncIteration:
                    return
                yield value
    finally:
        response.cancel()


async def call_for_reference(
    handle: DeploymentHandle[Any],
    *args: Any,
    timeout_s: float,
    longest_absence_s: float = math.inf,
) -> tuple["ObjectRef[Any]", Any]:
    """Call a generator method that yields two values: a reference to the first, and the second.

    The first value stays in the object store of the replica's node, whatever its size. This process
    owns it, so it outlives the replica. Raises what :func:`call` does.
    """
    return await _with_retry(
        handle.options(stream=True), args, timeout_s, longest_absence_s, _reference_and_value
    )


async def _value(response: DeploymentResponse[Any]) -> Any:
    return await response


async def _reference_and_value(
    response: DeploymentResponseGenerator[Any],
) -> tuple["ObjectRef[Any]", Any]:
    stream = await response._to_object_ref_gen()
    # Not by anext(stream), which fetches every value into this process.
    reference, second = stream._get_next_ref_n(2)
    try:
        value = await second
    except ObjectRefStreamEndOfStreamError:
        await reference  # raises: an error of the method is in the place of its first value
        raise
    stream._consume_next_ref_n(2)
    return reference, value


async def _with_retry(
    handle: DeploymentHandle[Any],
    args: tuple[Any, ...],
    timeout_s: float,
    longest_absence_s: float,
    result: Callable[[Any], Awaitable[T]],
) -> T:
    name = handle.deployment_name
    deadline = asyncio.get_running_loop().time() + timeout_s
    for attempt in (1, 2):
        response: Any = handle.remote(*args)
        try:
            with _domain_errors(name):
                async with asyncio.timeout_at(deadline):
                    await _routed(response, name, longest_absence_s)
                    return await result(response)
        except TimeoutError:
            response.cancel()
            raise _late(name, timeout_s) from None
        except asyncio.CancelledError:
            response.cancel()
            raise
        except ReplicaDied as death:
            logger.warning(
                "%s: replica died under a request (attempt %d): %s", name, attempt, death.__cause__
            )
    raise ReplicaDied(name)


async def _routed(response: Any, name: str, longest_absence_s: float) -> None:
    """Wait until a replica has the call; raises ModelUnavailable where there is none."""
    chosen = response._replica_result_future
    routed = asyncio.wrap_future(chosen)
    routed.add_done_callback(_ignore_error)
    while not chosen.done():
        if absent_s(name) > longest_absence_s:
            response.cancel()
            raise ModelUnavailable(f"no replica of {name} runs", 5.0)
        await asyncio.wait({routed}, timeout=ABSENCE_CHECK_S)


def _ignore_error(routed: "asyncio.Future[Any]") -> None:
    """Mark its error as retrieved: awaiting the response raises the same one."""
    if not routed.cancelled():
        routed.exception()


def _late(name: str, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"{name} did not finish within {timeout_s:g} s")


@contextmanager
def _domain_errors(name: str) -> Iterator[None]:
    """Raise Ray's errors as the domain's, and the death of the replica as ReplicaDied."""
    try:
        yield
    except BackPressureError:
        raise Overloaded(f"the queue of {name} is full") from None
    except DeploymentUnavailableError:
        raise Overloaded(f"{name} is not available") from None
    except RayActorError as death:
        raise ReplicaDied(name) from death
    except SpeechError as error:
        raise _as_raised(error) from None
    except ObjectLostError:
        # The audio died with the node of the decoder that made it; the whole request has to be
        # sent again, which the client or the job's next attempt does.
        raise ModelUnavailable(f"the input of {name} was lost with its node") from None
    except RayTaskError as error:
        if is_out_of_memory(error.cause):
            raise OutOfMemory(f"the memory of {name} does not suffice now", 5.0) from error
        raise EngineFailed(f"{name} failed on this input") from error


def _as_raised(error: SpeechError) -> SpeechError:
    """The error as the replica raised it, out of the wrapper that Ray puts around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SpeechError) else error
