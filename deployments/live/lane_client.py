"""The ingress's end of the lanes: live streams on recogniser replicas that may die at any time.

A stream keeps the audio of its current utterance. When its replica dies it opens on another one and
replays the utterance, inside the very call that noticed: the caller waits a little longer, and no
word is missing or doubled.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import numpy as np

from deployments.live.lane_connection import Lane, LaneBroken, RemoteStream
from deployments.live.lane_protocol import MAX_MESSAGE_BYTES, LaneAddress
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

logger = logging.getLogger(f"speechgraph.{__name__}")

Directory = Callable[[], Awaitable[list[LaneAddress]]]
"""Asks every replica for its address."""

_DIRECTORY_AGE_S = 1.0
_DIRECTORY_TIMEOUT_S = 2.0
_RETRY_S = 0.25
_MAX_DEATHS = 3
"""Replicas that may die under one call before its audio is taken for the cause."""
_SAMPLE_BYTES = 4
_REPLAYABLE = (Overloaded, DeadlineExceeded)


class LaneRecognizer:
    """:class:`speech.ports.StreamingRecognizer` on all replicas, with one lane to each.

    A new stream opens on the replica with the fewest, and a stream between two utterances moves
    away from a replica that has over twice as many as another. ``tick_s`` is the least time between
    two messages of a lane, ``recover_s`` the longest wait for an answer, or for a replica to come
    back; ``max_utterance_s`` bounds the audio that a stream keeps. For one event loop.
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
        self._lanes: dict[str, Lane] = {}
        self._refreshed_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self, model: str, hotwords: str | None = None) -> "LaneStream":
        """See the port. Refuses at once when all replicas are full, or none is there."""
        stream = LaneStream(self, model, hotwords)
        await stream.open(retry_for_s=0.0)
        return stream

    async def close(self) -> None:
        """Close all lanes; their replicas free the streams. Later calls raise Cancelled."""
        self._closed = True
        tasks = [lane.task for lane in self._lanes.values()]
        if self._refreshing is not None:
            tasks.append(self._refreshing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def open_remote(
        self, model: str, hotwords: str | None, retry_for_s: float
    ) -> RemoteStream:
        """A stream on the replica with the fewest; tries again for ``retry_for_s``.

        Raises Overloaded when all are full, ModelUnavailable, and the error of a replica that
        cannot open the model.
        """
        until = asyncio.get_running_loop().time() + retry_for_s
        max_age_s = _DIRECTORY_AGE_S
        while True:
            await self._refresh_if_older(max_age_s)
            if self._closed:
                raise Cancelled("the lanes are closed")
            try:
                return await self._open_on_any(model, hotwords)
            except Overloaded:
                if asyncio.get_running_loop().time() >= until:
                    raise
            max_age_s = _RETRY_S
            await asyncio.sleep(_RETRY_S)

    def crowded(self, replica: str) -> bool:
        """Whether another replica has less than half of the streams of this one."""
        if self._age_s() > _DIRECTORY_AGE_S:
            self._start_refresh()
        own = self._streams.get(replica, 0)
        return any(2 * streams + 1 < own for streams in self._streams.values())

    async def _open_on_any(self, model: str, hotwords: str | None) -> RemoteStream:
        refusal = ModelUnavailable("no replica of the live recogniser is there")
        full: Overloaded | None = None
        for replica in sorted(self._streams, key=self._streams.__getitem__):
            # Another stream may have found it dead, or filled it, while this one waited elsewhere.
            address = self._addresses.get(replica)
            if address is None:
                continue
            if self._streams[replica] >= address.capacity:
                full = full or Overloaded("all replicas of the live recogniser are full")
                continue
            self._streams[replica] += 1
            stream = RemoteStream(self._lane(address), self._on_stream_closed)
            try:
                await stream.open(model, hotwords, self.recover_s)
            except LaneBroken:
                continue
            except Overloaded as error:
                stream.close()
                full = error
            except BaseException:
                stream.close()
                raise
            else:
                return stream
        raise full or refusal

    def _lane(self, address: LaneAddress) -> Lane:
        lane = self._lanes.get(address.replica)
        if lane is None:
            lane = self._lanes[address.replica] = Lane(address, self._tick_s, self._on_broken)
        return lane

    def _on_stream_closed(self, replica: str) -> None:
        if replica in self._streams:
            self._streams[replica] -= 1

    def _on_broken(self, lane: Lane) -> None:
        """Forget the replica, and refresh the directory before the next stream opens."""
        replica = lane.address.replica
        del self._lanes[replica]
        self._addresses.pop(replica, None)
        self._streams.pop(replica, None)
        self._refreshed_at = float("-inf")

    def _age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._refreshed_at

    async def _refresh_if_older(self, max_age_s: float) -> None:
        if self._refreshing is not None or self._age_s() > max_age_s:
            # Not awaited itself: a stream that stops waiting must not end it for the others.
            await asyncio.wait([self._start_refresh()])

    def _start_refresh(self) -> asyncio.Task[None]:
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
        return self._refreshing

    async def _refresh(self) -> None:
        self._refreshed_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_DIRECTORY_TIMEOUT_S):
                addresses = await self._directory()
        except Exception as error:
            # The directory of the last refresh stays in use.
            logger.warning("the replicas of the live recogniser do not answer: %r", error)
        else:
            self._addresses = {address.replica: address for address in addresses}
            self._streams = {address.replica: address.streams for address in addresses}
        finally:
            self._refreshing = None


class LaneStream:
    """One live stream, on whichever replica.

    The audio of a cancelled ``feed`` belongs to the utterance, and the next call replays all of it.
    """

    def __init__(self, recognizer: LaneRecognizer, model: str, hotwords: str | None) -> None:
        self._recognizer = recognizer
        self._model = model
        self._hotwords = hotwords
        self._remote: RemoteStream | None = None
        self._utterance: list[bytes] = []
        self._utterance_samples = 0

    async def open(self, retry_for_s: float) -> RemoteStream:
        """Open the stream on a replica; see :meth:`LaneRecognizer.open_remote`."""
        recognizer = self._recognizer
        self._remote = await recognizer.open_remote(self._model, self._hotwords, retry_for_s)
        return self._remote

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        """See the port.

        Raises InvalidRequest for an utterance that is too long, ModelUnavailable when no replica
        came back in time, DeadlineExceeded when one did not answer, and what the engine raised.
        After an EngineFailed the utterance is forgotten.
        """
        limit_s = self._recognizer.max_utterance_s
        if self._utterance_samples + len(samples) > limit_s * SAMPLE_RATE:
            raise InvalidRequest(f"an utterance of a live stream has at most {limit_s:g} s")
        self._move_if_crowded()
        audio = np.ascontiguousarray(samples, np.float32).tobytes()
        self._utterance.append(audio)
        self._utterance_samples += len(samples)
        return await self._call("feed", audio)

    async def finish(self, trailing_silence_s: float = 0.0) -> tuple[Word, ...]:
        """See the port; raises what :meth:`feed` does."""
        if not self._utterance:
            return ()
        words = await self._call("finish", b"", trailing_silence_s)
        self._forget()
        return words

    async def close(self) -> None:
        """See the port; the replica learns of it with the next message."""
        self._close_remote()
        self._forget()

    async def _call(self, kind: str, audio: bytes, *more: float) -> tuple[Word, ...]:
        recover_s = self._recognizer.recover_s
        for _ in range(_MAX_DEATHS):
            remote = self._remote
            if remote is None or remote.broken:
                self._remote = None
                remote = await self.open(recover_s)
                audio = b"".join(self._utterance)
            try:
                return await remote.call([kind, audio, *more], recover_s)
            except LaneBroken:
                continue
            except BaseException as error:
                self._close_remote()
                if isinstance(error, SpeechError) and not isinstance(error, _REPLAYABLE):
                    self._forget()
                raise
        self._forget()
        raise EngineFailed(f"{_MAX_DEATHS} replicas died while they recognised this utterance")

    def _move_if_crowded(self) -> None:
        """Leave a crowded replica, between two utterances; the next call opens on another."""
        remote = self._remote
        if self._utterance or remote is None or remote.broken:
            return
        if self._recognizer.crowded(remote.replica):
            self._close_remote()

    def _close_remote(self) -> None:
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    def _forget(self) -> None:
        self._utterance.clear()
        self._utterance_samples = 0
