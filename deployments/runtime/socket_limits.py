"""Limits of the WebSocket server that Serve starts, in its proxies and in ingress replicas."""

from functools import partial

import uvicorn

MAX_MESSAGE_BYTES = 5 * 1024**2
"""A larger message is closed with 1009 as soon as its frame announces it.

The largest of any dialect is a realtime event of 4 Mi characters; its own error answers one that is
slightly larger."""


def limit_sockets() -> None:
    """Make Serve's WebSocket servers of this process refuse compression and large messages.

    Serve 2.60 passes no WebSocket option to uvicorn and has no setting for one, so the defaults are
    replaced where it takes them from, in each such process before the server starts.
    A middleware comes too late: uvicorn has negotiated and inflates before it.
    """
    uvicorn.Config = partial(  # type: ignore[assignment, misc]
        uvicorn.Config, ws_per_message_deflate=False, ws_max_size=MAX_MESSAGE_BYTES
    )
