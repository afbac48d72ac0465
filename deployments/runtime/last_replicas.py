"""Calls to the replicas of an application that is being deleted.

Serve stops all deployments of a deleted application at the same moment, and removes their replicas
from every handle. The replicas accept calls nevertheless, until they have had none for
``graceful_shutdown_wait_loop_s``; see :mod:`deployments.runtime.hold`.
"""

import weakref
from typing import Protocol


class Restorable(Protocol):
    """A router that can route to its last replicas again."""

    def restore(self) -> None:
        """Route to the last replicas again; may be called from any thread."""
        ...


_routers: "weakref.WeakSet[Restorable]" = weakref.WeakSet()
_keeping = False


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
