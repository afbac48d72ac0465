"""The sessions of a process: admission, resumption, supersession and drain."""

import asyncio
import contextlib

import pytest

from speech.errors import Overloaded
from speech.live.registry import STARTING_S, SessionRegistry
from speech.live.session import LiveSession
from speech.live.stream_decoder import stream_decoder
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, silence, speak
from tests.unit.speech.live.test_session import STREAMING, until
from tests.unit.virtual_time import run_in_virtual_time


@pytest.fixture
def models():
    return FakeModels()


@pytest.fixture
def counts():
    return []


@pytest.fixture
def sessions(counts):
    return SessionRegistry(max_sessions=2, retention_s=60.0, observe=counts.append)


def begun(models, sessions, name="one"):
    session = LiveSession(name, STREAMING, models.ports(), stream_decoder("pcm_s16le"))
    sessions.start(session)
    return session


def test_one_socket_more_than_there_is_room_for_is_refused(sessions):
    with sessions.socket(), sessions.socket(), pytest.raises(Overloaded), sessions.socket():
        pass
    with sessions.socket():
        pass


async def place(sessions):
    """A socket that has no session yet; whether it has lost its place, and how to close it."""
    held = contextlib.ExitStack()
    held.enter_context(sessions.socket())
    return held.enter_context(sessions.starting()), held.close


@pytest.mark.parametrize(("waited_s", "lost"), [(STARTING_S - 0.1, False), (STARTING_S, True)])
def test_a_new_socket_takes_the_place_of_one_that_is_long_without_a_session(waited_s, lost):
    async def check():
        sessions = SessionRegistry(max_sessions=2, retention_s=60.0)
        (first, close_first), (second, close_second) = [await place(sessions) for _ in range(2)]
        await asyncio.sleep(waited_s)
        if lost:
            with sessions.socket():
                assert (first.is_set(), second.is_set()) == (True, False)
                with sessions.socket(), pytest.raises(Overloaded), sessions.socket():
                    pass
                assert second.is_set()
        else:
            with pytest.raises(Overloaded), sessions.socket():
                pass
            assert not first.is_set()
        close_first()
        close_second()
        with sessions.socket(), sessions.socket(), pytest.raises(Overloaded), sessions.socket():
            pass
        assert sessions.idle

    run_in_virtual_time(check())


def test_a_socket_that_has_a_session_keeps_its_place():
    async def check():
        sessions = SessionRegistry(max_sessions=1, retention_s=60.0)
        with sessions.socket():
            with sessions.starting() as displaced:
                pass
            await asyncio.sleep(2 * STARTING_S)
            with pytest.raises(Overloaded), sessions.socket():
                pass
            assert not displaced.is_set()

    run_in_virtual_time(check())


async def test_one_session_more_than_there_is_room_for_is_refused(models, sessions, counts):
    one = begun(models, sessions)
    begun(models, sessions, "two")
    with pytest.raises(Overloaded):
        begun(models, sessions, "three")
    await sessions.leave(one, sessions.attach(one), resumable=False)
    begun(models, sessions, "three")
    assert sessions.count == 2
    assert counts == [1, 2, 1, 2]


async def test_a_session_that_cannot_be_resumed_ends_with_its_socket(models, sessions):
    session = begun(models, sessions)
    owner = sessions.attach(session)
    await until(lambda: models.streams)
    await sessions.leave(session, owner, resumable=False)
    assert (sessions.count, models.streams) == (0, 0)
    assert sessions.find("one") is None


async def test_a_session_waits_to_be_resumed(models, sessions):
    session = begun(models, sessions)
    await sessions.leave(session, sessions.attach(session), resumable=True)
    assert sessions.find("one") is session
    owner = sessions.attach(session)
    assert not owner.is_set()
    await sessions.leave(session, owner, resumable=False)


async def test_sessions_that_wait_make_room_the_oldest_first(models, sessions):
    one, two = begun(models, sessions), begun(models, sessions, "two")
    for session in (two, one):
        await sessions.leave(session, sessions.attach(session), resumable=True)
    begun(models, sessions, "three")
    assert (sessions.find("two"), sessions.find("one")) == (None, one)
    begun(models, sessions, "four")
    assert (sessions.find("one"), sessions.count) == (None, 2)
    with pytest.raises(Overloaded):
        begun(models, sessions, "five")


async def test_a_session_makes_room_within_the_bound_of_its_owner(models):
    sessions = SessionRegistry(max_sessions=100, retention_s=60.0)

    async def waiting(name, owner, max_of_owner):
        decoder = stream_decoder("pcm_s16le")
        session = LiveSession(name, STREAMING, models.ports(), decoder, owner=owner)
        sessions.start(session, max_of_owner)
        await sessions.leave(session, sessions.attach(session), resumable=True)

    for name in ("one", "two", "three"):
        await waiting(name, "mine", 2)
        await waiting(name, "other", None)
    kept = [name for name in ("one", "two", "three") if sessions.find(name, "mine")]
    assert kept == ["two", "three"]
    assert sessions.count == 5


async def test_a_session_that_nobody_resumes_is_freed(models):
    sessions = SessionRegistry(max_sessions=2, retention_s=0.01)
    session = begun(models, sessions)
    await until(lambda: models.streams)
    await sessions.leave(session, sessions.attach(session), resumable=True)
    async with asyncio.timeout(5):
        await until(lambda: not sessions.count and not models.streams)


async def test_the_newer_socket_has_the_session(models, sessions):
    session = begun(models, sessions)
    older = sessions.attach(session)
    newer = sessions.attach(session)
    assert older.is_set()
    assert not newer.is_set()
    await sessions.leave(session, older, resumable=False)
    assert sessions.count == 1
    await sessions.leave(session, newer, resumable=False)
    assert sessions.count == 0


async def test_a_session_that_begins_anew_takes_the_place_of_its_stale_namesake(models, sessions):
    stale = begun(models, sessions)
    owner = sessions.attach(stale)
    fresh = begun(models, sessions)
    assert owner.is_set()
    await sessions.leave(stale, owner, resumable=True)
    assert sessions.find("one") is fresh
    assert sessions.count == 1


async def test_a_finished_session_is_not_kept(models, sessions):
    session = begun(models, sessions)
    owner = sessions.attach(session)
    session.end()
    assert [event.kind async for event in session.events()] == ["done"]
    await sessions.leave(session, owner, resumable=True)
    assert sessions.count == 0


async def test_a_drain_admits_no_stream_and_ends_each_at_a_pause(models, sessions):
    session = begun(models, sessions)
    session.offer(exact(speak(1, 2), silence(1)))
    draining = asyncio.create_task(sessions.drain())
    events = [event async for event in session.events()]
    assert [event.text for event in events if event.kind == "final"] == ["1 2"]
    with pytest.raises(Overloaded), sessions.socket():
        pass
    with pytest.raises(Overloaded):
        begun(models, sessions, "late")
    draining.cancel()


async def test_a_drain_waits_until_the_last_socket_has_closed(sessions):
    with sessions.socket():
        draining = asyncio.create_task(sessions.drain())
        await asyncio.sleep(0)
        assert not sessions.idle
        assert not draining.done()
    await draining
    assert sessions.idle
