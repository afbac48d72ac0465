"""Records the other machines that Python code looks up or connects to.

Python imports this in every process that has the directory on PYTHONPATH. Sockets of C libraries
and of uvloop raise no audit events.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

CALLS_FILE = "SPEECHGRAPH_CALLS_FILE"
"""The variable that names the file to which the calls of the process are appended."""
_HERE = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")


def machine(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The name or address of another machine that an audit event is about."""
    host = None
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    name = host.decode() if isinstance(host, bytes) else host
    return name if isinstance(name, str) and name not in _HERE else None


def _append(event: str, arguments: tuple[Any, ...]) -> None:
    if (name := machine(event, arguments)) is not None:
        callers = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack(limit=8)]
        with Path(os.environ[CALLS_FILE]).open("a", encoding="utf-8") as file:
            file.write(f"{name} {event} {sys.argv[:2]} {callers}\n")


if CALLS_FILE in os.environ:
    sys.addaudithook(_append)
