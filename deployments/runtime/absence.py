"""For how long a deployment has had no replica, as the routers of this process know."""

import time

ABSENT_S = 20.0
"""After so many seconds without a replica interactive calls are rejected."""

_since: dict[str, float] = {}


def observe_replicas(deployment: str, count: int) -> None:
    """Called by the router of a deployment with the number of replicas that it can call."""
    if count:
        _since.pop(deployment, None)
    else:
        _since.setdefault(deployment, time.monotonic())


def absent_s(deployment: str) -> float:
    """Seconds; 0 while a replica runs, and for a deployment that may have none."""
    since = _since.get(deployment)
    return 0.0 if since is None else time.monotonic() - since
