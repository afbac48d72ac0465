"""Bounds of a request before any model gets it: bytes and pace of its body, form parts, requests
at once, seconds.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.uploads import UploadRequest
from speech.errors import AudioTooLarge, DeadlineExceeded, Overloaded, UploadTooSlow

ANSWER_GRACE_S = 5.0
"""Seconds beyond the deadline in which a streamed answer reports it and its client reads that."""

DISPLACEABLE_AFTER_S = 2.0
"""An upload so far behind its least rate loses its place to a request that finds none free."""

FORM_LIMITS = {"max_files": 16, "max_fields": 16, "max_part_size": 1024**2}
"""Most file parts, most text parts, and bytes of one text part of a form."""

_DEADLINE = "speechgraph.deadline"
_UPLOAD = "speechgraph.upload"


class Upload:
    """The ``receive`` of one request: bounds the bytes of the body and the waits for them.

    Waiting for the client uses up ``stall_s`` seconds, each byte restores ``1 / min_bytes_per_s``
    of them, never above ``stall_s``. So one bound holds for the longest silence and for the average
    rate, and a fast beginning does not allow a slow rest. Time that the app takes does not count.

    Calls raise AudioTooLarge, also for a declared length before the first byte is read, and
    UploadTooSlow.
    """

    def __init__(
        self, receive: Receive, max_bytes: int, declared: int, min_bytes_per_s: int, stall_s: float
    ) -> None:
        self._receive = receive
        self.max_bytes = max_bytes
        self._declared = declared
        self._min_bytes_per_s = min_bytes_per_s
        self._stall_s = stall_s
        self._received = 0
        self._complete = False
        self._behind_s = 0.0
        self._waits_since: float | None = None
        self._wait: asyncio.Timeout | None = None

    @property
    def behind_s(self) -> float:
        """Seconds by which the body is behind its least rate; 0 once it is complete."""
        if self._complete:
            return 0.0
        waiting = 0.0 if self._waits_since is None else _now() - self._waits_since
        return self._behind_s + waiting

    def displace(self) -> None:
        """End the upload with UploadTooSlow, now or when the app reads on."""
        self._behind_s = self._stall_s
        if self._wait is not None:
            self._wait.reschedule(_now())

    async def __call__(self) -> Message:
        if self._complete:  # what follows is the end of the connection
            return await self._receive()
        self._check(self._declared)
        message = await self._next()
        size = len(message.get("body", b""))
        self._received += size
        self._check(self._received)
        if self._behind_s >= self._stall_s:
            raise self._too_slow()
        self._behind_s = max(0.0, self._behind_s - size / self._min_bytes_per_s)
        self._complete = not message.get("more_body", False)
        return message

    async def _next(self) -> Message:
        self._waits_since = _now()
        wait = self._wait = asyncio.timeout(self._stall_s - self._behind_s)
        try:
            async with wait:
                return await self._receive()
        except TimeoutError:
            if not wait.expired():
                raise
            raise self._too_slow() from None
        finally:
            self._behind_s = self.behind_s
            self._waits_since = self._wait = None

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise AudioTooLarge(f"The request body is larger than {self.max_bytes} bytes.")

    def _too_slow(self) -> UploadTooSlow:
        return UploadTooSlow(
            f"The request body arrived slower than {self._min_bytes_per_s} bytes per second."
        )


class BodyLimit:
    """ASGI middleware that bounds the body of every request, see :class:`Upload`.

    The errors are raised where the app reads: a body that is not read costs nothing. ``max_bytes``
    holds the bound of each path prefix, "" for all; the longest prefix wins.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: Mapping[str, int], min_bytes_per_s: int, stall_s: float
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.min_bytes_per_s = min_bytes_per_s
        self.stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        most = self.max_bytes[max((p for p in self.max_bytes if path.startswith(p)), key=len)]
        length = Headers(scope=scope).get("content-length", "")
        declared = int(length) if length.isdecimal() else 0
        upload = Upload(receive, most, declared, self.min_bytes_per_s, self.stall_s)
        scope[_UPLOAD] = upload
        await self.app(scope, upload, send)


class Places:
    """The requests that are worked on at once, their uploads included.

    When all places are taken, the upload that is furthest behind its least rate loses its own to
    the new request: slow clients cannot block others.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: set[Upload] = set()
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def take(self, upload: Upload) -> None:
        """Raises Overloaded."""
        if self._closed:
            raise Overloaded("This replica is being stopped.", 1.0)
        if len(self._taken) >= self._count:
            slowest = max(self._taken, key=lambda other: other.behind_s)
            if slowest.behind_s < DISPLACEABLE_AFTER_S:
                raise Overloaded(f"{self._count} requests are being processed already.")
            slowest.displace()
            self.leave(slowest)
        self._taken.add(upload)
        self._idle.clear()

    def leave(self, upload: Upload) -> None:
        """Free the place, if it was not lost before."""
        self._taken.discard(upload)
        if not self._taken:
            self._idle.set()

    @property
    def idle(self) -> bool:
        """Whether no request has a place."""
        return self._idle.is_set()

    async def drain(self) -> None:
        """Admit no more requests, and wait until those that have a place have left it."""
        self._closed = True
        await self._idle.wait()


def heavy_route(places: Places, timeout_s: float) -> type[APIRoute]:
    """A class for routes that do long work: they share ``places`` and a deadline.

    The place is taken before the body is read and held until the answer is sent; one request more
    is rejected at once with Overloaded. A request that runs longer than ``timeout_s``, its upload
    included, ends in DeadlineExceeded. A route that streams its answer applies
    :func:`within_deadline` itself. The app has to be behind :class:`BodyLimit`.
    """

    class HeavyRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            upload: Upload = scope[_UPLOAD]
            places.take(upload)
            scope[_DEADLINE] = (_now() + timeout_s, timeout_s)
            try:
                async with asyncio.timeout(timeout_s + ANSWER_GRACE_S):
                    await super().handle(scope, receive, send)
            finally:
                places.leave(upload)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                upload = UploadRequest(request.scope, request.receive)
                upload.max_bytes = request.scope[_UPLOAD].max_bytes
                async with within_deadline(request):
                    return await handle(upload)

            return bounded

    return HeavyRoute


@asynccontextmanager
async def within_deadline(request: Request) -> AsyncIterator[None]:
    """Cancel what is inside when the time of a heavy route is up; DeadlineExceeded is raised."""
    ends_at, timeout_s = request.scope[_DEADLINE]
    try:
        async with asyncio.timeout_at(ends_at) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        message = f"The request did not finish within {timeout_s:g} seconds."
        raise DeadlineExceeded(message) from None


def _now() -> float:
    return asyncio.get_running_loop().time()
