"""The bound on what all live streams of a process together have pending."""

import asyncio


class PendingTotal:
    """What waits in the inboxes of all streams of a process, at most ``max_bytes``.

    A quarter of it is reserved: each of ``max_streams`` streams has an equal share of that quarter,
    ``share`` bytes, whatever the others have pending. The rest is lent to streams that have more
    than their share pending. So a stream within its share is neither rejected nor made to wait
    because of others, and all together never exceed ``max_bytes``.
    """

    def __init__(self, max_bytes: int, max_streams: int) -> None:
        self.share = max_bytes // 4 // max_streams
        self._to_lend = max_bytes - self.share * max_streams
        self._lent = 0
        self._freed = asyncio.Event()

    @property
    def lent(self) -> int:
        """What the streams have pending beyond their shares."""
        return self._lent

    def admits(self, pending: int, size: int) -> bool:
        """Whether a stream that has so much pending may take so much more."""
        more = self._beyond_share(pending + size) - self._beyond_share(pending)
        return more == 0 or self._lent + more <= self._to_lend

    def count(self, pending: int, size: int) -> None:
        """A stream that had so much pending has so much more, or less, now."""
        self._lent += self._beyond_share(pending + size) - self._beyond_share(pending)
        if size < 0:
            self._freed.set()

    def has_room(self, pending: int) -> bool:
        """Whether a stream is within its share, or less than half of what may be lent is."""
        return pending <= self.share or 2 * self._lent <= self._to_lend

    async def wait_for_change(self) -> None:
        """Wait until a stream has less pending."""
        self._freed.clear()
        await self._freed.wait()

    def _beyond_share(self, pending: int) -> int:
        return max(0, pending - self.share)
