"""The ingress's end of the lanes: live streams on recogniser replicas that may die at any time.

A stream remembers the audio of the utterance that is being heard. When its replica is gone it opens
on another one and plays the utterance again, inside the very call that noticed: who asked waits a
little longer, and no word is missing or doubled.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from deployments.live.lane_server import (
    MAX_MESSAGE_BYTES,
    SOCKET_OPTIONS,
    LaneAddress,
    Outbox,
    bearer,
    unpack_error,
    unpack_words,
    until_one_ends,
)
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    SpeechError,
)
from speech.transcript import Word

logger = logging.getLogger("ray.serve")

Directory = Callable[[], Awaitable[list[LaneAddress]]]
"""Asks every replica for its address."""

_DIRECTORY_AGE_S = 1.0
_DIRECTORY_TIMEOUT_S = 2.0
_CONNECT_TIMEOUT_S = 3.0
_RETRY_S = 0.25
_MAX_DEATHS = 3
"""Replicas that may die under one call before its audio is taken for the cause."""
_SAMPLE_BYTES = 4


class LaneRecognizer:
    """:class:`speech.ports.StreamingRecognizer` on all replicas, with one lane to each.

    A new stream opens on the replica with the fewest, and a stream between two utterances moves
    away from a replica that has over twice as many as another. ``tick_s`` is the least time between
    two messages of a lane, ``recover_s`` the longest wait for an answer, or for a replica to come
    back; ``max_utterance_s`` bounds the audio that a stream remembers. For one event loop.
    """

    def __init__(
        self, directory: Directory, *, tick_s: float, recover_s: float, max_utterance_s: float
    ) -> None:
        if max_utterance_s * SAMPLE_RATE * _SAMPLE_BYTES > MAX_MESSAGE_BYTES // 2:
            raise ValueError(f"an utterance of {max_utterance_s:g} s does not fit into a message")
        self.max_utterance_s = max_utterance_s
        self.recover_s = recover_s
        self._directory = directory
        self._tick_s = tick_s
        self._addresses: dict[str, LaneAddress] = {}
        self._streams: dict[str, int] = {}
        self._lanes: dict[str, _Lane] = {}
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self, model: str, hotwords: str | None = None) -> "LaneStream":
        """See the port. Refuses at once when all replicas are full, or none is there."""
        stream = LaneStream(self, model, hotwords)
        await stream.take_seat(patience_s=0.0)
        return stream

    async def close(self) -> None:
        """Give up all lanes; their replicas free the streams. What is asked later is Cancelled."""
        self._closed = True
        tasks = [lane.task for lane in self._lanes.values()]
        if self._asking is not None:
            tasks.append(self._asking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def seat(self, model: str, hotwords: str | None, patience_s: float) -> "_Seat":
        """A place on the replica with the fewest streams; tries again for ``patience_s``.

        Raises Overloaded when all are full, ModelUnavailable, and what the replica says of the
        model.
        """
        until = asyncio.get_running_loop().time() + patience_s
        age_s = _DIRECTORY_AGE_S
        while True:
            await self._refreshed(age_s)
            if self._closed:
                raise Cancelled("the lanes are closed")
            try:
                return await self._seat_now(model, hotwords)
            except Overloaded:
                if asyncio.get_running_loop().time() >= until:
                    raise
            age_s = _RETRY_S
            await asyncio.sleep(_RETRY_S)

    def crowded(self, replica: str) -> bool:
        """Whether another replica has less than half of the streams of this one."""
        if self._age_s() > _DIRECTORY_AGE_S:
            self._ask()
        own = self._streams.get(replica, 0)
        return any(2 * streams + 1 < own for streams in self._streams.values())

    def left(self, replica: str) -> None:
        """A stream gave up its place there."""
        if replica in self._streams:
            self._streams[replica] -= 1

    async def _seat_now(self, model: str, hotwords: str | None) -> "_Seat":
        refusal = ModelUnavailable("no replica of the live recogniser is there")
        full: Overloaded | None = None
        for replica in sorted(self._streams, key=self._streams.__getitem__):
            # Another stream may have found it dead, or filled it, while this one asked elsewhere.
            address = self._addresses.get(replica)
            if address is None:
                continue
            if self._streams[replica] >= address.capacity:
                full = full or Overloaded("all replicas of the live recogniser are full")
                continue
            self._streams[replica] += 1
            seat = _Seat(self, self._lane(address))
            try:
                await seat.open(model, hotwords, self.recover_s)
            except LaneBroken:
                continue
            except Overloaded as error:
                seat.leave()
                full = error
            except BaseException:
                seat.leave()
                raise
            else:
                return seat
        raise full or refusal

    def _lane(self, address: LaneAddress) -> "_Lane":
        lane = self._lanes.get(address.replica)
        if lane is None:
            lane = self._lanes[address.replica] = _Lane(address, self._tick_s, self._broken)
        return lane

    def _broken(self, lane: "_Lane") -> None:
        """Forget the replica until it is in a directory that is asked for from now on."""
        replica = lane.address.replica
        del self._lanes[replica]
        self._addresses.pop(replica, None)
        self._streams.pop(replica, None)
        self._asked_at = float("-inf")

    def _age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._asked_at

    async def _refreshed(self, age_s: float) -> None:
        if self._asking is not None or self._age_s() > age_s:
            # Not awaited itself: a stream that stops waiting must not end it for the others.
            await asyncio.wait([self._ask()])

    def _ask(self) -> asyncio.Task[None]:
        if self._asking is None:
            self._asking = asyncio.create_task(self._refresh())
        return self._asking

    async def _refresh(self) -> None:
        self._asked_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_DIRECTORY_TIMEOUT_S):
                addresses = await self._directory()
        except Exception as error:
            # What was known before is the best that is known.
            logger.warning("the replicas of the live recogniser do not answer: %r", error)
        else:
            self._addresses = {address.replica: address for address in addresses}
            self._streams = {address.replica: address.streams for address in addresses}
        finally:
            self._asking = None


class LaneStream:
    """One live stream, on whichever replica.

    A cancelled ``feed`` has heard its audio, and the next call plays the utterance again.
    """

    def __init__(self, recognizer: LaneRecognizer, model: str, hotwords: str | None) -> None:
        self._recognizer = recognizer
        self._model = model
        self._hotwords = hotwords
        self._seat: _Seat | None = None
        self._heard: list[bytes] = []
        self._heard_samples = 0

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        """See the port.

        Raises InvalidRequest for an utterance that is too long, ModelUnavailable when no replica
        came back in time, DeadlineExceeded when one did not answer, and what the engine raised.
        After an EngineFailed the utterance is forgotten.
        """
        limit_s = self._recognizer.max_utterance_s
        if self._heard_samples + len(samples) > limit_s * SAMPLE_RATE:
            raise InvalidRequest(f"an utterance of a live stream has at most {limit_s:g} s")
        seat = self._seat
        if not self._heard and seat and not seat.broken and self._recognizer.crowded(seat.replica):
            self._leave()
        audio = np.ascontiguousarray(samples, np.float32).tobytes()
        self._heard.append(audio)
        self._heard_samples += len(samples)
        return await self._call("feed", audio)

    async def finish(self, quiet_s: float = 0.0) -> tuple[Word, ...]:
        """See the port; raises what :meth:`feed` does."""
        if not self._heard:
            return ()
        words = await self._call("finish", b"", quiet_s)
        self._forget()
        return words

    async def close(self) -> None:
        """See the port; the replica is told with the next message."""
        self._leave()
        self._forget()

    async def take_seat(self, patience_s: float) -> "_Seat":
        """Open the stream somewhere."""
        self._seat = await self._recognizer.seat(self._model, self._hotwords, patience_s)
        return self._seat

    async def _call(self, kind: str, audio: bytes, *more: float) -> tuple[Word, ...]:
        recover_s = self._recognizer.recover_s
        for _ in range(_MAX_DEATHS):
            seat = self._seat
            if seat is None or seat.broken:
                self._seat = None
                seat = await self.take_seat(recover_s)
                audio = b"".join(self._heard)
            try:
                return await seat.ask([kind, audio, *more], recover_s)
            except LaneBroken:
                continue
            except BaseException as error:
                self._leave()
                if isinstance(error, SpeechError) and not isinstance(error, _REPLAYABLE):
                    self._forget()
                raise
        self._forget()
        raise EngineFailed(f"{_MAX_DEATHS} replicas died while they heard this utterance")

    def _leave(self) -> None:
        if self._seat is not None:
            self._seat.leave()
            self._seat = None

    def _forget(self) -> None:
        self._heard.clear()
        self._heard_samples = 0


_REPLAYABLE = (Overloaded, DeadlineExceeded)


class LaneBroken(Exception):
    """The lane broke before the answer came."""


class _Seat:
    """The place of one stream on a lane."""

    def __init__(self, recognizer: LaneRecognizer, lane: "_Lane") -> None:
        self.replica = lane.address.replica
        self._recognizer = recognizer
        self._lane = lane
        self._number = next(lane.numbers)

    @property
    def broken(self) -> bool:
        return self._lane.broken

    async def open(self, model: str, hotwords: str | None, timeout_s: float) -> None:
        await self._lane.ask([self._number, "open", model, hotwords], timeout_s)

    async def ask(self, call: list[Any], timeout_s: float) -> tuple[Word, ...]:
        return await self._lane.ask([self._number, *call], timeout_s)

    def leave(self) -> None:
        if not self._lane.broken:
            self._lane.tell([self._number, "close"])
            self._recognizer.left(self.replica)


class _Lane:
    """One socket to one replica, for as long as it holds."""

    def __init__(
        self, address: LaneAddress, tick_s: float, on_broken: Callable[["_Lane"], None]
    ) -> None:
        self.address = address
        self.numbers = itertools.count()
        self.broken = False
        self._outbox = Outbox(tick_s)
        self._answers: dict[int, asyncio.Future[tuple[Word, ...]]] = {}
        self._on_broken = on_broken
        self.task = asyncio.create_task(self._run())

    async def ask(self, call: list[Any], timeout_s: float) -> tuple[Word, ...]:
        """The answer to a call; waits for the connection too. Raises LaneBroken."""
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

    def tell(self, call: list[Any]) -> None:
        """A call that has no answer."""
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
