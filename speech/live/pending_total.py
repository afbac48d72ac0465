"""The bound of all live streams of a process together."""

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class PendingTotal:
    """Audio that waits in the inboxes of all streams of a process, bytes."""

    max_bytes: int
    used: int = 0
    freed: asyncio.Event = field(default_factory=asyncio.Event)
