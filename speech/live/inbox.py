"""What a client sent and the session has not processed yet, within its bounds."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from speech.audio import SAMPLE_RATE
from speech.errors import TooFarAhead
from speech.live.pending_total import PendingTotal
from speech.live.session_options import SessionOptions
from speech.live.stream_decoder import StreamDecoder

Command = Literal["finalize", "checkpoint", "commit", "clear", "drain", "end"]

BLOCK_S = 4.0
"""A stream that is behind is processed in blocks of this many seconds, with a partial for each."""
_BLOCK_BYTES = round(BLOCK_S * SAMPLE_RATE * 2)
_FRAME_BYTES = 200
"""What a frame in the inbox costs beside its audio, about."""
_CHANGE_BYTES = 20_000
"""What a change of options or decoder counts for: a prompt, hotwords, a resampler."""


@dataclass(frozen=True, slots=True)
class Change:
    """What follows comes in a new stream of bytes, and under other options if there are any."""

    decoder: StreamDecoder
    options: SessionOptions | None = None


Item = bytes | Command | Change


@dataclass(frozen=True, slots=True)
class Received:
    """An item of the inbox, when it arrived, and how many frames of the client its audio is."""

    item: Item
    arrived: float
    frames: int = 0


class Inbox:
    """Audio, commands and changes in the order in which they came.

    It holds at most ``max_bytes``, and all inboxes of a process together at most what ``total``
    allows. ``clock`` gives the time of arrival in seconds.
    """

    def __init__(self, max_bytes: int, total: PendingTotal, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._total = total
        self._clock = clock
        self._items: deque[Received] = deque()
        self._pending_bytes = 0
        self._arrived = asyncio.Event()
        self._closed = False

    @property
    def empty(self) -> bool:
        """Whether everything was taken out."""
        return not self._items

    def put(self, item: Item) -> bool:
        """Whether the item is in; nothing is taken after ``close``.

        Raises TooFarAhead, having taken nothing. "drain" and "end" are always taken.
        """
        if self._closed:
            return False
        size = _size(item)
        if self._pending_bytes + size > self._max_bytes:
            raise TooFarAhead(
                f"more than {self._max_bytes} bytes of this stream wait to be recognised"
            )
        if not self._total.admits(self._pending_bytes, size):
            raise TooFarAhead("too much audio of all streams waits to be recognised")
        self._count(size)
        frames = 1 if isinstance(item, bytes) else 0
        self._items.append(Received(item, self._clock(), frames))
        self._arrived.set()
        return True

    async def get(self) -> Received:
        """The next item; audio that waits comes in one piece, up to a block."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        first = self._pop()
        if not isinstance(first.item, bytes):
            return first
        pieces, size, arrived = [first.item], len(first.item), first.arrived
        while self._items and size < _BLOCK_BYTES:
            following = self._items[0].item
            if not isinstance(following, bytes):
                break
            arrived = self._pop().arrived
            pieces.append(following)
            size += len(following)
        return Received(b"".join(pieces), arrived, len(pieces))

    async def wait_for_room(self) -> None:
        """Wait until less than half of the bound of this stream and of what all share is pending.

        A stream within its share of the total does not wait for others. For callers that can slow
        the client down.
        """
        while 2 * self._pending_bytes > self._max_bytes or not self._total.has_room(
            self._pending_bytes
        ):
            await self._total.wait_for_change()

    def close(self) -> None:
        """Drop everything and take no more."""
        self._closed = True
        self._items.clear()
        self._count(-self._pending_bytes)

    def _pop(self) -> Received:
        received = self._items.popleft()
        self._count(-_size(received.item))
        return received

    def _count(self, size: int) -> None:
        self._total.count(self._pending_bytes, size)
        self._pending_bytes += size


def _size(item: Item) -> int:
    match item:
        case bytes():
            return _FRAME_BYTES + len(item)
        case Change():
            return _CHANGE_BYTES
        case "drain" | "end":  # each comes once
            return 0
    return _FRAME_BYTES
