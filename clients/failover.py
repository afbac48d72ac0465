"""The addresses of a service: which one a client connects to, when, and what its failures mean."""

import asyncio
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

PING_S, PONG_S = 5.0, 10.0  # between two pings, and until the answer counts as missing
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 2.0  # between two attempts at the same address
DEFAULT_RETRY_AFTER_S = 2.0
REJECTIONS = frozenset({1000, 1002, 1003, 1007, 1008, 1009, 1010, *range(4000, 5000)})
"""Close codes that end the stream; after any other it is resumed."""


class StreamError(Exception):
    """The stream failed; ``code`` is the server's error code, for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ServerBusy(StreamError):
    """The server has no room for the stream; try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__("overloaded", message)
        self.retry_after_s = retry_after_s


class ConnectionLost(StreamError):
    """The server cannot be reached."""

    def __init__(self, message: str) -> None:
        super().__init__("connection_lost", message)


@dataclass
class _Address:
    url: str
    not_before: float = 0.0  # on the loop's clock
    delay_s: float = FIRST_DELAY_S


class Addresses:
    """One or several addresses of a service, in the order in which they are tried.

    One that failed goes to the end, and is not tried before its Retry-After or a delay that grows
    with each failure in a row.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise ValueError("no address of the service")
        self._queue = deque(map(_Address, urls))

    def __len__(self) -> int:
        return len(self._queue)

    def next(self) -> tuple[str, float]:
        """The address to try next, and the seconds until then."""
        now = asyncio.get_running_loop().time()
        chosen = min(self._queue, key=lambda address: max(address.not_before, now))
        self._queue.remove(chosen)
        self._queue.appendleft(chosen)
        return chosen.url, max(0.0, chosen.not_before - now)

    def connected(self) -> None:
        """The address that is in use works."""
        self._queue[0].delay_s = FIRST_DELAY_S

    def failed(self, failure: StreamError) -> None:
        """The address that is in use does not work now."""
        address = self._queue[0]
        if isinstance(failure, ServerBusy):
            wait_s = failure.retry_after_s
        else:
            wait_s = address.delay_s * random.uniform(0.5, 1.0)
            address.delay_s = min(2 * address.delay_s, LONGEST_DELAY_S)
        address.not_before = asyncio.get_running_loop().time() + wait_s
        self._queue.rotate(-1)


async def open_socket(url: str, headers: Mapping[str, str] | None) -> ClientConnection:
    """A socket after its handshake.

    Raises ServerBusy, ConnectionLost, or StreamError if the handshake is rejected.
    """
    try:
        return await connect(
            url,
            additional_headers=headers,
            compression=None,  # PCM does not compress well
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            close_timeout=2.0,
        )
    except InvalidStatus as rejected:
        raise _rejected_error(rejected) from rejected
    except (OSError, InvalidHandshake) as lost:
        raise ConnectionLost(f"{url}: {lost}") from lost


def _rejected_error(rejected: InvalidStatus) -> StreamError:
    """The error of an HTTP answer to the handshake."""
    response = rejected.response
    body = (response.body or b"").decode(errors="replace").strip()
    message = body[:500] or f"HTTP {response.status_code}"
    if response.status_code in (429, 503):
        try:
            wait_s = float(response.headers["Retry-After"])
        except (KeyError, ValueError):  # absent, or a date
            wait_s = DEFAULT_RETRY_AFTER_S
        return ServerBusy(message, wait_s)
    if response.status_code >= 500:
        return ConnectionLost(message)
    return StreamError(f"http_{response.status_code}", message)


def closed_error(closed: ConnectionClosed, reported: Mapping[str, Any]) -> StreamError:
    """The error of a closed socket: final, or a drop to recover from.

    ``reported`` is the error event that was received before, if any.
    """
    code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "")
    message = reported.get("message") or reason or f"the connection closed ({code})"
    if code == 1013:  # try again later
        return ServerBusy(message, reported.get("retry_after_s", DEFAULT_RETRY_AFTER_S))
    if code in REJECTIONS:
        return StreamError(reported.get("code") or f"closed_{code}", message)
    return ConnectionLost(message)
