"""Where the links of an Ogg chain end, in bytes that arrive in pieces."""

from speech.media.containers import OGG_FIRST_PAGE

_MARKER_BYTES = 6
_TAGS = b"OpusTags"
"""On the second page of a stream of Opus: behind it, a first page begins another link."""


class OggLinks:
    """Splits a chain, whose links may differ in channels, into files for FFmpeg."""

    _before: bytes
    _has_tags: bool

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin with the first or the next link."""
        self._before = b""  # the end of what was taken
        self._has_tags = False

    def take(self, data: bytearray, size: int, *, last: bool) -> int | None:
        """How many of the first ``size`` bytes belong to this link; 0: it has ended.

        None if that is unknown until more bytes arrive, which the ``last`` ones do not need.
        """
        window = bytes(data[: size + _MARKER_BYTES - 1])
        start = 0
        if not self._has_tags:
            joined = self._before + window[:size]
            found = joined.find(_TAGS)
            if found < 0:
                self._before = joined[1 - len(_TAGS) :]
                return min(size, len(window))
            start = max(0, found + len(_TAGS) - len(self._before))
        count = self._count(window, start, size, last)
        if count:
            self._has_tags, self._before = True, b""
        return count

    @staticmethod
    def _count(window: bytes, start: int, size: int, last: bool) -> int | None:
        match = OGG_FIRST_PAGE.search(window, start)
        if match:
            return min(match.start(), size)
        if len(window) > size or last:
            return min(size, len(window))
        for held in range(_MARKER_BYTES - 1, 0, -1):
            tail = window[-held:]
            if len(tail) == held and b"OggS\x00"[:held] == tail:
                return len(window) - held or None
        return len(window)
