"""What this process knows of its :mod:`deployments.runtime.model_router`, a module without state.

**The last replicas**: Serve stops all deployments of a deleted application at the same moment, and
removes their replicas from every handle. The replicas accept calls nevertheless, until they have
had none for ``graceful_shutdown_wait_loop_s``; see :mod:`deployments.runtime.hold`.

**Absence**: for how long a deployment has had no replica.
"""

import time
import weakref
from typing import Protocol

ABSENT_S = 20.0
"""After so many seconds without a replica interactive calls are rejected."""


class Restorable(Protocol):
    """A router that can route to its last replicas again."""

    def restore(self) -> None:
        """Route to the last replicas again; may be called from any thread."""
        ...


_routers: "weakref.WeakSet[Restorable]" = weakref.WeakSet()
_keeping = False
_absent_since: dict[str, float] = {}


def register(router: Restorable) -> None:
    """Let :func:`keep_last_replicas` restore a router of this process."""
    _routers.add(router)


def keeping() -> bool:
    """Whether :func:`keep_last_replicas` was called."""
    return _keeping


def keep_last_replicas() -> None:
    """Let all handles of this process call the last replicas that they had.

    For a process whose application is being deleted: no others will follow.
    """
    global _keeping
    _keeping = True
    for router in list(_routers):
        router.restore()


def observe_replicas(deployment: str, count: int) -> None:
    """Called by the router of a deployment with the number of replicas that it can call."""
    if count:
        _absent_since.pop(deployment, None)
    else:
        _absent_since.setdefault(deployment, time.monotonic())


def absent_s(deployment: str) -> float:
    """Seconds; 0 while a replica runs, and for a deployment that may have none."""
    since = _absent_since.get(deployment)
    return 0.0 if since is None else time.monotonic() - since
