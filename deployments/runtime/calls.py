"""A call to another deployment: a deadline, one retry when its replica dies, domain errors."""

import asyncio
import logging
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from speech.errors import DeadlineExceeded, EngineFailed, Overloaded, SpeechError

logger = logging.getLogger(f"speechgraph.{__name__}")


class ReplicaDied(Exception):
    """The replica died twice while it worked on this request."""


async def call(handle: DeploymentHandle[Any], *args: Any, timeout_s: float) -> Any:
    """Call a bound handle method and await its value; see :func:`respond`."""
    value, _ = await respond(handle, *args, timeout_s=timeout_s)
    return value


async def respond(
    handle: DeploymentHandle[Any], *args: Any, timeout_s: float
) -> tuple[Any, DeploymentResponse[Any]]:
    """The value of a call, and the response that passes it on by reference.

    Inference has no side effects, so a request whose replica died is sent once more. Cancelling
    this coroutine, or running out of ``timeout_s``, cancels the call in its replica.

    Raises the domain's error that the replica raised, Overloaded, DeadlineExceeded, and
    ReplicaDied when the second replica died as well.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    for attempt in (1, 2):
        response = handle.remote(*args)
        assert isinstance(response, DeploymentResponse)
        try:
            async with asyncio.timeout_at(deadline):
                return await response, response
        except TimeoutError:
            response.cancel()
            name = handle.deployment_name
            raise DeadlineExceeded(f"{name} did not finish within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            raise Overloaded(f"the queue of {handle.deployment_name} is full") from None
        except DeploymentUnavailableError:
            raise Overloaded(f"{handle.deployment_name} is not available") from None
        except RayActorError as death:
            logger.warning(
                "%s: replica died under a request (attempt %d): %s",
                handle.deployment_name,
                attempt,
                death,
            )
        except SpeechError as error:
            raise _as_raised(error) from None
        except RayTaskError as error:
            raise EngineFailed(f"{handle.deployment_name} failed on this input") from error
    raise ReplicaDied(handle.deployment_name)


def _as_raised(error: SpeechError) -> SpeechError:
    """The error as the replica raised it, out of the wrapper that Ray puts around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SpeechError) else error
