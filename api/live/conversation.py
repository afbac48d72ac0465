"""A live socket in any dialect: admission, frames in, events out, and every way it can end."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api.errors import STATUS, RenderError, problem_of, render_detail
from api.live.registry import LiveStreams
from speech.errors import IdleTimeout, Overloaded, SpeechError
from speech.live.events import Event
from speech.live.session import LiveSession

NORMAL, GOING_AWAY, REFUSED, FAILED, TRY_LATER = 1000, 1001, 1008, 1011, 1013
SUPERSEDED = 4001
SEND_TIMEOUT_S = 20.0
FLOW_CONTROL = "speechgraph.flow_control"
"""Extension of the scope where frames that are not taken slow the client down."""

Frame = str | bytes


@dataclass(frozen=True, slots=True)
class Opening:
    """The session that the first frames began, what to answer, and after which event to go on.

    ``frame`` is the last of them where it already is for the session.
    """

    session: LiveSession
    greeting: Sequence[str] = ()
    after: int = 0
    frame: Frame | None = None


class Dialect(Protocol):
    """One wire protocol, for one socket."""

    resumable: bool

    @property
    def ended(self) -> bool:
        """Whether the client has said on this socket that no audio follows."""
        ...

    def greeting(self) -> Sequence[str]:
        """What is said before the client says anything. Raises SpeechError."""
        ...

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        """The session that a frame begins, or what to answer to it while another is waited for.

        Raises SpeechError.
        """
        ...

    def receive(self, frame: Frame, session: LiveSession) -> Sequence[str]:
        """Hand a later frame to the session; what to answer at once. Raises SpeechError."""
        ...

    def render(self, event: Event) -> Sequence[str]:
        """The frames that tell an event."""
        ...

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        """The frames that tell why the socket is being closed."""
        ...

    def close_code(self, code: str) -> int:
        """The code to close with after an error of that code."""
        ...


def code_of(code: str) -> int:
    """The close code that says what kind of error it was, by the code of the error."""
    status = STATUS[code]
    if status == 503:
        return TRY_LATER
    return REFUSED if status < 500 else FAILED


async def converse(
    websocket: WebSocket,
    live: LiveStreams,
    dialect: Dialect,
    *,
    subprotocol: str | None = None,
    say: RenderError = render_detail,
) -> None:
    """Serve one socket from the handshake to its close.

    Beyond the bound of sessions the handshake itself is answered: 503 with Retry-After, in the
    shape of ``say``.
    """
    with contextlib.ExitStack() as places:
        try:
            places.enter_context(live.sessions.socket())
        except Overloaded as full:
            await websocket.send_denial_response(say(problem_of(full)))
            return
        with contextlib.suppress(WebSocketDisconnect):
            await websocket.accept(subprotocol)
            await _Conversation(websocket, live, dialect).run()


class _DoesNotReadError(Exception):
    """The client takes no frames, so that nothing can be said to it."""


class _Conversation:
    def __init__(self, websocket: WebSocket, live: LiveStreams, dialect: Dialect) -> None:
        self._websocket = websocket
        self._live = live
        self._dialect = dialect

    async def run(self) -> None:
        try:
            await self._serve()
        except _DoesNotReadError:
            await self._close(TRY_LATER, "the client does not read")

    async def _serve(self) -> None:
        try:
            opening = await self._begin()
        except SpeechError as error:
            await self._refuse(error, begun=False)
            return
        if opening is None:
            await self._close(GOING_AWAY)
            return
        session = opening.session
        owner = self._live.sessions.attach(session)
        try:
            await self._talk(opening, owner)
        finally:
            await self._live.sessions.leave(session, owner, resumable=self._dialect.resumable)

    async def _begin(self) -> Opening | None:
        """None where the service is being stopped before the client begins.

        Nothing is awaited after the frame that begins: until then another socket may have it.
        """
        greeting = self._dialect.greeting()
        for text in greeting:
            await self._send(text)
        settings = self._live.settings
        # Who was greeted is connected and may keep silent.
        patience = settings.idle_timeout_s if greeting else settings.start_timeout_s
        while True:
            frame = await self._next_unless_stopped(patience)
            if frame is None:
                return None
            opening = self._dialect.open(frame)
            if isinstance(opening, Opening):
                return opening
            for text in opening:
                await self._send(text)
            patience = settings.idle_timeout_s

    async def _talk(self, opening: Opening, owner: asyncio.Event) -> None:
        listening = asyncio.create_task(self._listen(opening, owner))
        telling = asyncio.create_task(self._tell(opening))
        superseded = asyncio.create_task(owner.wait())
        tasks: set[asyncio.Task[object]] = {listening, telling, superseded}
        refused: SpeechError | None = None
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if owner.is_set():
                await self._close(SUPERSEDED, "the session goes on with another socket")
            elif telling.done():
                await self._close(telling.result())
            else:
                listening.result()
        except SpeechError as error:
            refused = error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if refused is not None:
            await self._refuse(refused, begun=True)

    async def _listen(self, opening: Opening, owner: asyncio.Event) -> None:
        """Hand frames on until the client goes or comes anew.

        Waits for the session only where that slows the client down: elsewhere what is not taken
        piles up in Serve, where nothing bounds it.
        """
        session, frame = opening.session, opening.frame
        slows_down = FLOW_CONTROL in self._websocket.scope.get("extensions", {})
        while not owner.is_set():
            if frame is not None:
                for text in self._dialect.receive(frame, session):
                    await self._send(text)
            if slows_down:
                await session.room()
            try:
                frame = await self._next(self._live.settings.idle_timeout_s)
            except IdleTimeout:
                if not session.ending:
                    raise
                frame = None  # the client has said all and waits for us

    async def _tell(self, opening: Opening) -> int:
        """Tell events until the last one; the code to close with."""
        for text in opening.greeting:
            await self._send(text)
        failure: int | None = None
        async for event in opening.session.events(opening.after):
            if event.kind == "error":
                failure = self._dialect.close_code(event.code)
            for text in self._dialect.render(event):
                await self._send(text)
        if failure is not None:
            return failure
        stopped = self._live.sessions.draining and not self._dialect.ended
        return GOING_AWAY if stopped else NORMAL

    async def _next(self, patience: float) -> Frame:
        try:
            async with asyncio.timeout(patience):
                return await self._receive()
        except TimeoutError:
            raise IdleTimeout(f"nothing was heard for {patience:g} seconds") from None

    async def _next_unless_stopped(self, patience: float) -> Frame | None:
        waiting = asyncio.create_task(self._next(patience))
        stopping = asyncio.create_task(self._live.sessions.stopping.wait())
        tasks: set[asyncio.Task[object]] = {waiting, stopping}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> Frame:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
        data = message.get("bytes")
        return message.get("text") or "" if data is None else data

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                # Half a surrogate pair, which a client may have sent in an escape, is no UTF-8.
                await self._websocket.send_text(text.encode(errors="replace").decode())
        except TimeoutError:
            raise _DoesNotReadError from None
        await asyncio.sleep(0)  # behind Serve's own proxy a send never waits

    async def _refuse(self, error: SpeechError, *, begun: bool) -> None:
        for text in self._dialect.render_error(error, begun):
            await self._send(text)
        await self._close(self._dialect.close_code(error.code), error.message)

    async def _close(self, code: int, reason: str = "") -> None:
        if self._websocket.application_state is WebSocketState.CONNECTED:
            said = reason.encode(errors="replace")[:123].decode(errors="ignore")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self._websocket.close(code, said)
