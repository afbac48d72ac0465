"""One live stream over one connection, in any dialect: the first frames, audio in, events out, and
every way it can end.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from api.errors import STATUS
from api.live.connection import (
    FAILED,
    GOING_AWAY,
    NORMAL,
    REFUSED,
    SUPERSEDED,
    TRY_LATER,
    Connection,
    Disconnected,
    Frame,
)
from api.live.registry import LiveStreams
from speech.errors import IdleTimeout, Overloaded, SpeechError
from speech.live.events import Event
from speech.live.session import LiveSession
from speech.log_context import session_id

SEND_TIMEOUT_S = 20.0
"""How long a client may take to read one frame."""
FINISH_TIMEOUT_S = 60.0
"""How long the audio of a client that has fallen silent may take to be recognised."""
CLOSE_FRAME_TIMEOUT_S = 1.0
"""How long the close frame of a client may take to be received after a send has failed."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The session that the first frames opened, what to answer, and the event to continue after.

    ``frame`` is the last of the frames where it is already part of the stream.
    """

    session: LiveSession
    greeting: Sequence[str] = ()
    after: int = 0
    frame: Frame | None = None


class Dialect(Protocol):
    """One wire protocol, for one connection."""

    @property
    def resumable(self) -> bool:
        """Whether the session outlives its connection for a while."""
        ...

    @property
    def may_start_late(self) -> bool:
        """Whether clients may wait for any time before their first audio."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the client has announced on this connection that no audio follows."""
        ...

    def greeting(self) -> Sequence[str]:
        """What is sent before the first frame of the client. Raises SpeechError."""
        ...

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        """The session that a frame opens, or the answer to a frame that opens none yet.

        Raises SpeechError.
        """
        ...

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        """Feed a later frame into the session; returns the immediate answer. Raises SpeechError."""
        ...

    def render(self, event: Event) -> Sequence[str]:
        """The frames that report an event."""
        ...

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        """The frames that report why the connection is being closed."""
        ...

    def close_code(self, code: str) -> int:
        """The close code after an error of that code."""
        ...


def code_of(code: str) -> int:
    """The close code for an error of :mod:`speech.errors`, by its code."""
    status = STATUS[code]
    if status == 503:
        return TRY_LATER
    return REFUSED if status < 500 else FAILED


async def converse(connection: Connection, live: LiveStreams, dialect: Dialect) -> None:
    """Serve an open connection until it is closed.

    The caller holds a place of :meth:`speech.live.registry.SessionRegistry.socket`.
    """
    with contextlib.suppress(Disconnected):
        await _Conversation(connection, live, dialect).run()


class _ClientDoesNotReadError(Exception):
    """The client reads no frames, so that nothing more can be sent."""


class _Conversation:
    def __init__(self, connection: Connection, live: LiveStreams, dialect: Dialect) -> None:
        self._connection = connection
        self._live = live
        self._dialect = dialect
        self._idle: IdleTimeout | None = None

    async def run(self) -> None:
        try:
            await self._serve()
        except _ClientDoesNotReadError:
            await self._close(TRY_LATER, "the client does not read")

    async def _serve(self) -> None:
        with self._live.sessions.starting() as displaced:
            try:
                opening = await self._open(displaced)
            except SpeechError as error:
                await self._refuse(error, begun=False)
                return
        if opening is None:
            await self._close(GOING_AWAY)
            return
        session = opening.session
        superseded = self._live.sessions.attach(session)
        resumable = self._dialect.resumable
        try:
            await self._exchange(opening, superseded)
        except Disconnected as disconnected:
            resumable = resumable and disconnected.code != NORMAL
            raise
        finally:
            await self._live.sessions.leave(session, superseded, resumable=resumable)

    async def _open(self, displaced: asyncio.Event) -> Opening | None:
        """None where the service is stopped before the client opens a session.

        Nothing is awaited after the frame that opens it: until the session is attached, another
        connection may take it.
        """
        greeting = self._dialect.greeting()
        for text in greeting:
            await self._send(text)
        settings = self._live.settings
        first_s, later_s = settings.start_timeout_s, settings.idle_timeout_s
        # A client that was greeted is connected, and may wait with its first frame.
        timeout_s: float | None = later_s if greeting else first_s
        while True:
            if self._dialect.may_start_late:
                timeout_s = None
            frame = await self._next_unless_stopped(timeout_s, displaced)
            if frame is None:
                return None
            opening = self._dialect.open(frame)
            if isinstance(opening, Opening):
                return opening
            for text in opening:
                await self._send(text)
            timeout_s = later_s

    async def _exchange(self, opening: Opening, superseded: asyncio.Event) -> None:
        """Receive frames and send events at the same time, until one of both is over."""
        session_id.set(opening.session.id)
        receiving = asyncio.create_task(self._receive(opening, superseded))
        sending = asyncio.create_task(self._send_events(opening))
        replaced = asyncio.create_task(superseded.wait())
        try:
            await asyncio.wait({receiving, sending, replaced}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(receiving, sending, replaced)
        try:
            if superseded.is_set():
                await self._close(SUPERSEDED, "the session continues with another socket")
            elif not sending.cancelled():
                await self._close(sending.result())
            else:
                receiving.result()
        except SpeechError as error:
            await self._refuse(error, begun=True)

    async def _receive(self, opening: Opening, superseded: asyncio.Event) -> None:
        """Feed frames into the session; once the client is idle, finish what it has sent."""
        try:
            await self._receive_frames(opening, superseded)
        except IdleTimeout as idle:
            self._idle = idle
            opening.session.end()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINISH_TIMEOUT_S):
                    while True:  # later frames are dropped: Serve keeps them without a bound
                        await self._connection.receive()
            raise

    async def _receive_frames(self, opening: Opening, superseded: asyncio.Event) -> None:
        """Feed frames into the session until the client leaves or resumes elsewhere.

        Waits for room in the session only where that slows the client down: elsewhere the frames
        that are not received pile up in Serve, without a bound.
        """
        session, frame = opening.session, opening.frame
        while not superseded.is_set():
            if frame is not None:
                for text in self._dialect.receive(frame, session):
                    await self._send(text)
            if self._connection.flow_control:
                await session.wait_for_room()
            try:
                frame = await self._next(self._live.settings.idle_timeout_s)
            except IdleTimeout:
                if not session.ending:
                    raise
                frame = None  # the client has sent everything and waits for the results

    async def _send_events(self, opening: Opening) -> int:
        """Send events up to the last one; returns the close code. Raises IdleTimeout.

        That is raised in place of the last event, once what an idle client sent is recognised.
        """
        failure: int | None = None
        try:
            for text in opening.greeting:
                await self._send(text)
            async for event in opening.session.events(opening.after):
                if event.kind == "error":
                    failure = self._dialect.close_code(event.code)
                if event.kind == "done" and failure is None and self._idle is not None:
                    raise self._idle
                for text in self._dialect.render(event):
                    await self._send(text)
        except Disconnected:
            # Only ``receive`` reports the code with which the client closed.
            await asyncio.sleep(CLOSE_FRAME_TIMEOUT_S)
            raise
        if failure is not None:
            return failure
        stopped = self._live.sessions.draining and not self._dialect.ended
        return GOING_AWAY if stopped else NORMAL

    async def _next(self, timeout_s: float | None) -> Frame:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connection.receive()
        except TimeoutError:
            raise IdleTimeout(f"nothing was received for {timeout_s:g} seconds") from None

    async def _next_unless_stopped(
        self, timeout_s: float | None, displaced: asyncio.Event
    ) -> Frame | None:
        """Raises Overloaded where another client takes the place."""
        waiting = asyncio.create_task(self._next(timeout_s))
        stopping = asyncio.create_task(self._live.sessions.stopping.wait())
        losing = asyncio.create_task(displaced.wait())
        try:
            await asyncio.wait({waiting, stopping, losing}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if losing.done():
                raise Overloaded("all places are taken, and this client has sent no audio yet")
            return None
        finally:
            await _cancel(waiting, stopping, losing)

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                # A client may have sent half a surrogate pair in an escape; UTF-8 has none.
                await self._connection.send(text.encode(errors="replace").decode())
        except TimeoutError:
            raise _ClientDoesNotReadError from None
        await asyncio.sleep(0)  # behind Serve's own proxy a send never waits

    async def _refuse(self, error: SpeechError, *, begun: bool) -> None:
        for text in self._dialect.render_error(error, begun):
            await self._send(text)
        await self._close(self._dialect.close_code(error.code), error.message)

    async def _close(self, code: int, reason: str = "") -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._connection.close(code, reason)


async def _cancel(*tasks: "asyncio.Task[object]") -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
