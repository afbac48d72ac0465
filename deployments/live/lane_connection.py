"""One socket of an ingress to one recogniser replica, and the streams on it."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from deployments.live.lane_protocol import (
    SOCKET_OPTIONS,
    LaneAddress,
    Outbox,
    bearer,
    unpack_error,
    unpack_words,
    until_one_ends,
)
from speech.background import in_background
from speech.errors import DeadlineExceeded
from speech.transcript import Word

logger = logging.getLogger(f"speechgraph.{__name__}")

_CONNECT_TIMEOUT_S = 3.0


class LaneBroken(Exception):
    """The lane broke before the answer arrived."""


class RemoteStream:
    """One stream on one replica; ``on_close`` is called once if it ends before its lane does."""

    def __init__(self, lane: "Lane", on_close: Callable[[str], None]) -> None:
        self.replica = lane.address.replica
        self._lane = lane
        self._on_close = on_close
        self._number = next(lane.stream_numbers)

    @property
    def broken(self) -> bool:
        """Whether the lane is broken, and the stream lost with it."""
        return self._lane.broken

    async def open(self, model: str, hotwords: str | None, timeout_s: float) -> None:
        """Open it on the replica; raises what :meth:`call` does."""
        await self.call(["open", model, hotwords], timeout_s)

    async def call(self, call: list[Any], timeout_s: float) -> tuple[Word, ...]:
        """The words that answer a call.

        Raises LaneBroken, DeadlineExceeded, and the error that the replica answers.
        """
        return await self._lane.call([self._number, *call], timeout_s)

    def close(self) -> None:
        """Free it on the replica, which learns of it with the next message."""
        if not self._lane.broken:
            self._lane.post([self._number, "close"])
            self._on_close(self.replica)


class Lane:
    """One socket to one replica, until it breaks."""

    def __init__(
        self, address: LaneAddress, tick_s: float, on_broken: Callable[["Lane"], None]
    ) -> None:
        self.address = address
        self.stream_numbers = itertools.count()
        self.broken = False
        self._outbox = Outbox(tick_s)
        self._answers: dict[int, asyncio.Future[tuple[Word, ...]]] = {}
        self._on_broken = on_broken
        self.task = in_background(self._run, f"lane to {address.replica}", restart=False)

    async def call(self, call: list[Any], timeout_s: float) -> tuple[Word, ...]:
        """See :meth:`RemoteStream.call`; waits for the connection too."""
        if self.broken:
            raise LaneBroken
        answer: asyncio.Future[tuple[Word, ...]] = asyncio.get_running_loop().create_future()
        self._answers[call[0]] = answer
        self._outbox.post(call)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from a recogniser for {timeout_s:g} s") from None
        finally:
            self._answers.pop(call[0], None)

    def post(self, call: list[Any]) -> None:
        """Send a call that has no answer."""
        self._outbox.post(call)

    async def _run(self) -> None:
        url = f"ws://{self.address.host}:{self.address.port}"
        try:
            async with connect(
                url,
                additional_headers={"Authorization": bearer(self.address.token)},
                open_timeout=_CONNECT_TIMEOUT_S,
                proxy=None,
                **SOCKET_OPTIONS,
            ) as socket:
                await until_one_ends(self._read(socket), self._outbox.send_to(socket))
        except (OSError, WebSocketException) as error:
            logger.warning("lane to %s: %s", self.address.replica, error)
        finally:
            self.broken = True
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(LaneBroken())
            self._on_broken(self)

    async def _read(self, socket: ClientConnection) -> None:
        async for message in socket:
            for stream, words, error in msgpack.unpackb(message):
                answer = self._answers.get(stream)
                if answer is None or answer.done():
                    continue
                if error is None:
                    answer.set_result(unpack_words(words))
                else:
                    answer.set_exception(unpack_error(error))
