"""Limits of one key: requests per minute, requests at once."""

import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from api.auth.key_file import Key

FULL_RETRY_AFTER_S = 2.0
"""Retry-After while all places are taken: when one becomes free is unknown."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that is reached, and the seconds after which to retry."""

    code: str
    message: str
    retry_after_s: float


class LimitReached(Exception):
    """A key has reached one of its limits."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


class KeyLimits(Protocol):
    """Keeps the keys of a service within their limits."""

    def hold(self, key: Key) -> AbstractAsyncContextManager[None]:
        """Around one request or stream, from its admission to its end. Raises LimitReached."""
        ...


class KeyCounter:
    """The requests of each limited key: a token bucket, and the places that are taken.

    A bucket holds one minute's requests and fills evenly. A place is given back when the request
    ends, or when it is not renewed for ``lease_s``: its process is then taken for dead.
    """

    def __init__(
        self, lease_s: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._places: dict[str, dict[str, float]] = {}

    def enter(
        self, key: str, rate: int | None, concurrent: int | None, place: str
    ) -> Refusal | None:
        """Count a request of a key and give it a place, or return the limit that is reached."""
        now = self._clock()
        taken = {p: ends for p, ends in self._places.get(key, {}).items() if ends > now}
        if concurrent is not None and len(taken) >= concurrent:
            message = f"This key may have {concurrent} requests and streams at once."
            return Refusal("concurrency_limit_exceeded", message, FULL_RETRY_AFTER_S)
        if rate is not None:
            tokens, counted_at = self._buckets.get(key, (float(rate), now))
            tokens = min(float(rate), tokens + (now - counted_at) * rate / 60)
            if tokens < 1:
                message = f"This key may send {rate} requests per minute."
                return Refusal("rate_limit_exceeded", message, (1 - tokens) * 60 / rate)
            self._buckets[key] = (tokens - 1, now)
        self._places[key] = taken | {place: now + self._lease_s}
        return None

    def leave(self, key: str, place: str) -> None:
        """Give a place back."""
        places = self._places.get(key, {})
        places.pop(place, None)
        if not places:
            self._places.pop(key, None)

    def renew(self, held: Mapping[str, Iterable[str]]) -> None:
        """Extend the lease of places, also of those that this counter does not hold."""
        ends = self._clock() + self._lease_s
        for key, places in held.items():
            self._places.setdefault(key, {}).update(dict.fromkeys(places, ends))

    def held(self) -> dict[str, list[str]]:
        """The places that are taken, by key."""
        return {key: list(places) for key, places in self._places.items()}


class LocalLimits:
    """Implements :class:`KeyLimits` for a service of one process."""

    def __init__(self, counter: KeyCounter | None = None) -> None:
        self._counter = counter or KeyCounter()

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """See :class:`KeyLimits`."""
        if not key.limited:
            yield
            return
        place = uuid.uuid4().hex
        refusal = self._counter.enter(key.id, key.rate, key.concurrent, place)
        if refusal is not None:
            raise LimitReached(refusal)
        try:
            yield
        finally:
            self._counter.leave(key.id, place)
