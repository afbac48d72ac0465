"""The live sessions of one process: admission, resumption after a dropped socket, drain."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from speech.background import in_background
from speech.errors import ModelUnavailable, Overloaded
from speech.live.session import LiveSession
from speech.ports import RecognizerStream, StreamingRecognizer

DRAIN_S = 10.0
"""How long a drained session may wait for the end of its utterance."""
STARTING_S = 10.0
"""How long a socket keeps its place without a session, where another client needs it."""


@dataclass(eq=False)
class _Entry:
    session: LiveSession
    task: asyncio.Task[None]
    attached: asyncio.Event | None = None
    expiry: asyncio.TimerHandle | None = None


class SessionRegistry:
    """At most ``max_sessions`` streams, and as many sockets.

    Where all places are taken, a new socket takes that of the one that has been longest without a
    session, if that is longer than STARTING_S; as many sockets again may be on their way out.
    A session outlives its socket by ``retention_s`` if its dialect can resume; otherwise it is
    cancelled, which frees all it holds. One that waits to be resumed is cancelled earlier where a
    client needs its place, the one that has waited longest first.
    """

    def __init__(
        self,
        max_sessions: int,
        retention_s: float,
        observe: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._max = max_sessions
        self._retention_s = retention_s
        self._observe = observe
        self._sockets = 0
        self._starting: dict[asyncio.Event, float] = {}
        """Sockets without a session and since when, the longest first."""
        self._displaced: set[asyncio.Event] = set()
        """Those that have lost their place and are still open."""
        self._no_sockets = asyncio.Event()
        self._no_sockets.set()
        self._entries: dict[tuple[str, str], _Entry] = {}
        """By owner and id: clients choose ids, and may choose those of others."""
        self._ending: set[asyncio.Task[None]] = set()
        """Cancelled sessions that still hold something."""
        self.stopping = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether no more streams are admitted."""
        return self.stopping.is_set()

    @property
    def idle(self) -> bool:
        """Whether no socket is open."""
        return self._no_sockets.is_set()

    @property
    def count(self) -> int:
        """Sessions that are alive, those without a socket included."""
        return len(self._entries)

    @contextlib.contextmanager
    def socket(self) -> Iterator[None]:
        """The place of one socket. Raises Overloaded at once when none is free."""
        if self._sockets - len(self._displaced) >= self._max:
            self._displace()
        self._admit(self._sockets - len(self._displaced))
        self._sockets += 1
        self._no_sockets.clear()
        try:
            yield
        finally:
            self._sockets -= 1
            if self._sockets == 0:
                self._no_sockets.set()

    @contextlib.contextmanager
    def starting(self) -> Iterator[asyncio.Event]:
        """Around what a socket does without a session; the event is set when it loses its place."""
        displaced = asyncio.Event()
        self._starting[displaced] = asyncio.get_running_loop().time()
        try:
            yield displaced
        finally:
            self._starting.pop(displaced, None)
            self._displaced.discard(displaced)

    def _displace(self) -> None:
        """Take the place of the socket that has been longest without a session, if it is time."""
        longest = next(iter(self._starting), None)
        if longest is None:
            return
        if asyncio.get_running_loop().time() - self._starting[longest] >= STARTING_S:
            del self._starting[longest]
            self._displaced.add(longest)
            longest.set()

    def start(self, session: LiveSession, max_of_owner: int | None = None) -> None:
        """Run a session, in place of its owner's one of the same id; raises Overloaded.

        Sessions that wait to be resumed make room for it, also where its owner has
        ``max_of_owner`` sessions.
        """
        stale = self._entries.get(_key(session))
        attached = [e for e in self._entries.values() if e.expiry is None and e is not stale]
        self._admit(len(attached))
        if stale is not None:
            self._forget(stale)
        if max_of_owner is not None:
            self._make_place(
                [e for e in self._entries.values() if _is_of(session, e)], max_of_owner
            )
        self._make_place(list(self._entries.values()), self._max)
        task = in_background(session.run, f"live session {session.id}", restart=False)
        self._entries[_key(session)] = _Entry(session, task)
        self._observe(self.count)

    def find(self, session_id: str, owner: str = "") -> LiveSession | None:
        """A session that its owner may resume."""
        entry = self._entries.get((owner, session_id))
        return entry.session if entry else None

    def attach(self, session: LiveSession) -> asyncio.Event:
        """Give a session another socket; the event is set when that one is superseded in turn."""
        entry = self._entries[_key(session)]
        if entry.attached is not None:
            entry.attached.set()
        if entry.expiry is not None:
            entry.expiry.cancel()
            entry.expiry = None
        entry.attached = asyncio.Event()
        return entry.attached

    async def leave(self, session: LiveSession, owner: asyncio.Event, *, resumable: bool) -> None:
        """The socket of a session closed: keep the session for a while, or end it now."""
        entry = self._entries.get(_key(session))
        if entry is None or entry.attached is not owner:
            return
        entry.attached = None
        if resumable and not session.finished and self._retention_s > 0 and not self.draining:
            loop = asyncio.get_running_loop()
            entry.expiry = loop.call_later(self._retention_s, self._forget, entry)
        else:
            self._forget(entry)
            await asyncio.gather(entry.task, return_exceptions=True)

    async def free_stream(self) -> bool:
        """Wait until a session has ended that holds a stream without a client; False if none does.

        The session that has waited longest to be resumed is cancelled for it.
        """
        if not self._ending:
            waiting = _by_waiting_time(self._entries.values())
            if not waiting:
                return False
            self._forget(waiting[0])
        await asyncio.wait(self._ending, return_when=asyncio.FIRST_COMPLETED)
        return True

    def _make_place(self, entries: list[_Entry], places: int) -> None:
        """Cancel sessions that wait to be resumed until one more fits."""
        surplus = max(0, len(entries) + 1 - places)
        for entry in _by_waiting_time(entries)[:surplus]:
            self._forget(entry)

    def _admit(self, taken: int) -> None:
        if self.draining:
            raise Overloaded("this replica is being stopped", 1.0)
        if taken >= self._max:
            raise Overloaded(f"{self._max} streams are open already")

    def _forget(self, entry: _Entry) -> None:
        entry.task.cancel()
        self._ending.add(entry.task)
        entry.task.add_done_callback(self._ending.discard)
        if entry.expiry is not None:
            entry.expiry.cancel()  # it holds the session
        if entry.attached is not None:
            entry.attached.set()
        key = _key(entry.session)
        if self._entries.get(key) is entry:
            del self._entries[key]
        self._observe(self.count)

    async def drain(self) -> None:
        """Admit no more streams, end those that are open at their next pause, await their sockets.

        A stream without a pause ends after DRAIN_S.
        """
        self.stopping.set()
        for entry in self._entries.values():
            entry.session.drain()
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._no_sockets.wait()
        except TimeoutError:
            for entry in list(self._entries.values()):
                entry.session.end()
            await self._no_sockets.wait()


class YieldingRecognizer:
    """A :class:`speech.ports.StreamingRecognizer` whose streams live sessions can have at once.

    Where all streams are taken, sessions that wait to be resumed are cancelled for a new one.
    """

    def __init__(self, recognizer: StreamingRecognizer, sessions: SessionRegistry) -> None:
        self._recognizer = recognizer
        self._sessions = sessions

    async def open(self, model: str, hotwords: str | None = None) -> RecognizerStream:
        """See the port."""
        while True:
            try:
                return await self._recognizer.open(model, hotwords)
            except ModelUnavailable:
                raise
            except Overloaded:
                if not await self._sessions.free_stream():
                    raise


def _key(session: LiveSession) -> tuple[str, str]:
    return session.owner, session.id


def _is_of(session: LiveSession, entry: _Entry) -> bool:
    return entry.session.owner == session.owner


def _by_waiting_time(entries: Iterable[_Entry]) -> list[_Entry]:
    """Those that wait to be resumed, the one that has waited longest first."""
    waiting = [(entry.expiry.when(), entry) for entry in entries if entry.expiry is not None]
    return [entry for _, entry in sorted(waiting, key=lambda pair: pair[0])]
