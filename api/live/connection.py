"""What a conversation needs of a connection to one client, whatever protocol carries it."""

from typing import Protocol

NORMAL, GOING_AWAY, BROKEN, REFUSED, FAILED, TRY_LATER = 1000, 1001, 1006, 1008, 1011, 1013
"""Close codes, those of RFC 6455; nobody sends BROKEN, which stands for no close frame."""
SUPERSEDED = 4001
"""Close code where another connection has resumed the session."""

Frame = str | bytes


class Disconnected(Exception):
    """The client has closed the connection with a close code, or it broke."""

    def __init__(self, code: int = BROKEN) -> None:
        super().__init__(code)
        self.code = code


class Connection(Protocol):
    """An open connection to one client: frames in, texts out."""

    @property
    def flow_control(self) -> bool:
        """Whether the client is slowed down while frames are not received."""
        ...

    async def receive(self) -> Frame:
        """The next frame; nothing is lost when the call is cancelled. Raises Disconnected."""
        ...

    async def send(self, text: str) -> None:
        """Send a text that is valid Unicode. Raises Disconnected."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Close with a close code and a reason of any length; no effect once closed."""
        ...
