"""File descriptors of a node: what HAProxy takes, and the connections that fit the limit.

HAProxy does not start where its connections do not fit. It raises the soft limit by itself, so the
hard one counts.
"""

import resource

SPARE = 200
"""Descriptors beside those of connections: listeners, logs, health checks of the replicas."""
LEAST = 8192
"""Soft limit that Ray recommends for its own processes."""


def descriptors(connections: int) -> int:
    """What HAProxy takes for so many: two sockets each, and a pipe for every fourth."""
    return 2 * connections + 2 * (connections // 4) + SPARE


def fitting(connections: int) -> int:
    """``connections``, or as many of them as the limit of this process and its children allows."""
    wanted = descriptors(connections)
    allowed = _hard_limit(wanted)
    return connections if wanted <= allowed else max(1, (allowed - SPARE) * 2 // 5)


def problems(behind_haproxy: bool, connections: int) -> list[str]:
    """What is wrong with the limits of this process, for Ray processes that it would start."""
    found = []
    if behind_haproxy and (fit := fitting(connections)) < connections:
        found.append(
            f"RAY_SERVE_HAPROXY_MAXCONN={connections} takes {descriptors(connections)} file "
            f"descriptors: raise the hard limit (ulimit -Hn), or set it to {fit}"
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < LEAST:
        found.append(f"the soft limit of file descriptors (ulimit -n) is {soft}, below {LEAST}")
    return found


def _hard_limit(wanted: int) -> int:
    """The hard limit, raised to ``wanted`` where this process may do that, as HAProxy does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, wanted))
    except (OSError, ValueError):
        return hard
    return wanted
