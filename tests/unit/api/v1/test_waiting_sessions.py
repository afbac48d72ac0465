"""Native sessions without a socket: which are kept for a resume, and which make room."""

import pytest

from tests.unit.api.native_client import END, FRAME, native, stream, texts
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, frames, speak
from tests.unit.live_service import serving


async def test_a_session_that_its_client_closed_normally_is_freed_at_once():
    async with serving(FakeModels(), max_sessions=2) as service:
        for _ in range(100):
            async with native(service) as (client, _):
                await client.send(exact(speak(1)))
                await client.close(1000)
        await service.idle()
        service.assert_free()


async def test_a_normal_close_while_events_are_sent_frees_the_session_as_well():
    async with serving(FakeModels(), max_sessions=2) as service:
        for _ in range(20):
            async with native(service) as (client, _):
                await client.send(*frames(exact(speak(*range(1, 30))), FRAME))
                await client.until(type="partial")
                await client.close(1000)
        await service.idle()
        service.assert_free()


@pytest.mark.parametrize("code", [1001, 3000])
async def test_a_session_whose_client_closed_for_another_reason_can_be_resumed(quick, code):
    async with native(quick) as (client, ready):
        await client.close(code)
    await quick.idle()
    resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
    async with native(quick, resume=resume) as (client, again):
        assert again["resumed"]
        await client.close()


async def dropped(service):
    """A session that waits to be resumed, and how."""
    async with native(service) as (client, ready):
        await client.send(exact(speak(1)))
        await client.until(type="partial")
        client.drop()
    await service.idle()
    return {"session": ready["session"], "seq": 0, "from_s": 0.0}


@pytest.mark.parametrize("bound", ["sessions", "streams of the recogniser"])
async def test_the_session_that_waits_longest_makes_room_for_a_live_client(bound):
    models = FakeModels()
    async with serving(models, max_sessions=2 if bound == "sessions" else 100) as service:
        models.max_streams = 2
        oldest, newest = await dropped(service), await dropped(service)
        assert texts(await stream(service, exact(speak(5)))) == ["5"]
        async with native(service, resume=newest) as (client, again):
            assert again["resumed"]
            await client.close()
        async with native(service, resume=oldest) as (client, again):
            assert not again["resumed"]
            await client.close()


async def test_dropped_sockets_lock_nobody_out():
    models = FakeModels()
    async with serving(models, max_sessions=3) as service:
        models.max_streams = 3
        for _ in range(4):
            await dropped(service)
        async with native(service) as (one, _), native(service) as (two, _):
            for client in (one, two):
                await client.send(exact(speak(7)), END)
                assert texts(await client.rest()) == ["7"]
