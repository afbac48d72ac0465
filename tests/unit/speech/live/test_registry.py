"""The sessions of a process: who is let in, who may come back, who has to go."""

import asyncio

import pytest

from speech.errors import Overloaded
from speech.live.registry import SessionRegistry
from speech.live.session import LiveSession
from speech.live.stream_decoder import stream_decoder
from tests.unit.speech.live.test_session import STREAMING, Ears, pcm, phrase, silence, until


@pytest.fixture
def ears():
    return Ears()


@pytest.fixture
def counts():
    return []


@pytest.fixture
def sessions(counts):
    return SessionRegistry(max_sessions=2, retention_s=60.0, observe=counts.append)


def begun(ears, sessions, name="one"):
    session = LiveSession(name, STREAMING, ears.ports(), stream_decoder("pcm_s16le"))
    sessions.start(session)
    return session


def test_one_socket_more_than_there_is_room_for_is_refused(sessions):
    with sessions.socket(), sessions.socket(), pytest.raises(Overloaded), sessions.socket():
        pass
    with sessions.socket():
        pass


async def test_one_session_more_than_there_is_room_for_is_refused(ears, sessions, counts):
    one = begun(ears, sessions)
    begun(ears, sessions, "two")
    with pytest.raises(Overloaded):
        begun(ears, sessions, "three")
    await sessions.leave(one, sessions.attach(one), resumable=False)
    begun(ears, sessions, "three")
    assert sessions.count == 2
    assert counts == [1, 2, 1, 2]


async def test_a_session_that_cannot_come_back_ends_with_its_socket(ears, sessions):
    session = begun(ears, sessions)
    owner = sessions.attach(session)
    await until(lambda: ears.open_streams)
    await sessions.leave(session, owner, resumable=False)
    assert (sessions.count, ears.open_streams) == (0, 0)
    assert sessions.find("one") is None


async def test_a_session_waits_for_its_socket_to_come_back(ears, sessions):
    session = begun(ears, sessions)
    await sessions.leave(session, sessions.attach(session), resumable=True)
    assert sessions.find("one") is session
    owner = sessions.attach(session)
    assert not owner.is_set()
    await sessions.leave(session, owner, resumable=False)


async def test_a_session_that_nobody_comes_back_for_is_given_up(ears):
    sessions = SessionRegistry(max_sessions=2, retention_s=0.01)
    session = begun(ears, sessions)
    await until(lambda: ears.open_streams)
    await sessions.leave(session, sessions.attach(session), resumable=True)
    async with asyncio.timeout(5):
        await until(lambda: not sessions.count and not ears.open_streams)


async def test_the_newer_socket_has_the_session(ears, sessions):
    session = begun(ears, sessions)
    older = sessions.attach(session)
    newer = sessions.attach(session)
    assert older.is_set()
    assert not newer.is_set()
    await sessions.leave(session, older, resumable=False)
    assert sessions.count == 1
    await sessions.leave(session, newer, resumable=False)
    assert sessions.count == 0


async def test_a_session_that_begins_anew_takes_the_place_of_its_stale_namesake(ears, sessions):
    stale = begun(ears, sessions)
    owner = sessions.attach(stale)
    fresh = begun(ears, sessions)
    assert owner.is_set()
    await sessions.leave(stale, owner, resumable=True)
    assert sessions.find("one") is fresh
    assert sessions.count == 1


async def test_a_finished_session_is_not_kept(ears, sessions):
    session = begun(ears, sessions)
    owner = sessions.attach(session)
    session.end()
    assert [event.kind async for event in session.events()] == ["done"]
    await sessions.leave(session, owner, resumable=True)
    assert sessions.count == 0


async def test_a_drain_lets_nobody_in_and_ends_everybody_at_a_pause(ears, sessions):
    session = begun(ears, sessions)
    session.offer(pcm(phrase(1, 2), silence(1)))
    draining = asyncio.create_task(sessions.drain())
    told = [event async for event in session.events()]
    assert [event.text for event in told if event.kind == "final"] == ["1 2"]
    with pytest.raises(Overloaded), sessions.socket():
        pass
    with pytest.raises(Overloaded):
        begun(ears, sessions, "late")
    draining.cancel()
