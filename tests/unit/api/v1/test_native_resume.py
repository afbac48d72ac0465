"""A native stream whose socket drops, and comes back or not."""

import asyncio
import contextlib

import pytest
from websockets.exceptions import ConnectionClosed

from speech.audio import SAMPLE_RATE
from tests.unit.api.native_client import (
    END,
    FRAME,
    assert_sound,
    finals,
    native,
    numbers,
    stream,
    texts,
)
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, frames, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES, serving


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES])
@pytest.mark.parametrize("sent_s", [1.7, 3.1, 5.0])
async def test_a_stream_goes_on_with_another_socket(quick, model, sent_s):
    audio = exact(speak(1, 2, 3), silence(1), speak(*range(4, 13)), silence(1), speak(13))
    sent = round(sent_s * SAMPLE_RATE) * 2 + 1  # half a sample too much
    async with native(quick, model=model) as (client, ready):
        await client.send(*frames(audio[:sent], FRAME))
        before = await client.until(type="speech_start")
        if sent_s > 3:
            before += await client.until(type="final")
        client.drop()
    received = finals(before)
    resume = {"session": ready["session"], "seq": before[-1]["seq"]}
    resume["from_s"] = received[-1]["end"] if received else 0.0
    async with native(quick, model=model, resume=resume) as (client, again):
        assert again["resumed"]
        assert again["session"] == ready["session"]
        at = round(again["audio_from_s"] * SAMPLE_RATE) * 2
        assert at <= sent
        await client.send(*frames(audio[at:], FRAME), END)
        after = await client.rest()
    assert client.closed == (1000, "")
    assert_sound(before + after)
    assert texts(before + after) == ["1 2 3", numbers(4, 12), "13"]
    starts = [word["start"] for final in finals(before + after) for word in final["words"]]
    expected = [0.4 * n + (n > 2) + (n > 11) for n in range(13)]
    assert starts == pytest.approx(expected, abs=1e-3)


async def test_an_unknown_session_begins_where_the_client_names(quick):
    resume = {"session": "from-another-replica", "seq": 41, "from_s": 7.5}
    async with native(quick, resume=resume) as (client, ready):
        assert not ready["resumed"]
        assert ready["session"] == resume["session"]
        assert (ready["seq"], ready["audio_from_s"]) == (41, 7.5)
        await client.send(exact(silence(1), speak(1)), END)
        events = await client.rest()
    assert events[0]["seq"] == 42
    (final,) = finals(events)
    assert final["words"][0]["start"] == 8.5


async def test_a_session_that_is_behind_its_client_makes_room_for_another(quick):
    async with native(quick) as (client, ready):
        await client.send(exact(speak(1)))
        await client.until(type="partial")
        client.drop()
    resume = {"session": ready["session"], "seq": 90, "from_s": 30.0}  # it has been elsewhere since
    async with native(quick, resume=resume) as (client, again):
        assert (again["resumed"], again["audio_from_s"]) == (False, 30.0)
        await client.send(exact(speak(2)), END)
        events = await client.rest()
    assert [(f["text"], f["words"][0]["start"]) for f in finals(events)] == [("2", 30.0)]
    assert events[0]["seq"] == 91


async def test_a_stream_goes_on_in_the_encoding_it_had(quick):
    async with native(quick) as (client, ready):
        client.drop()
    resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
    async with native(quick, resume=resume, sample_rate=8000) as (client, refused):
        assert refused["code"] == "invalid_request"
        await client.rest()
        assert client.closed[0] == 1008
    await stream(quick, b"", resume=resume)


async def test_a_socket_that_is_still_open_is_superseded_and_no_longer_received(quick):
    async with native(quick) as (old, ready):
        await old.send(*frames(exact(speak(1), silence(1)), FRAME))
        seen = await old.until(type="final")
        pouring = asyncio.create_task(old.send(*frames(exact(speak(*range(100, 200))), 1600)))
        resume = {"session": ready["session"], "seq": seen[-1]["seq"], "from_s": seen[-1]["end"]}
        async with native(quick, resume=resume) as (new, again):
            assert again["resumed"]
            await old.rest()
            assert old.closed[0] == 4001
            with contextlib.suppress(ConnectionClosed):
                await pouring
            await new.send(exact(silence(1), speak(7777)), END)
            events = await new.rest()
    (late,) = [w for final in finals(events) for w in final["words"] if w["word"] == "7777"]
    assert late["start"] == pytest.approx(again["audio_from_s"] + 1.0, abs=1e-3)
    recognised = " ".join(texts(events)).split()
    assert recognised[:-1] == [str(n) for n in range(100, 100 + len(recognised) - 1)]


@pytest.mark.parametrize("finished", [False, True])
async def test_events_after_the_end_wait_for_a_socket(quick, finished):
    quick.models.transcribing.shut()
    async with native(quick, model=UTTERANCES, partials=False) as (client, ready):
        await client.send(exact(speak(1)), END)
        await quick.models.transcribing.reached.wait()
        client.drop()
    await quick.idle()
    session = quick.streams.sessions.find(ready["session"])
    quick.models.transcribing.open()
    if finished:
        assert [event.kind async for event in session.events()][-1] == "done"
    resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
    async with native(quick, model=UTTERANCES, resume=resume) as (client, again):
        assert (again["resumed"], again["audio_from_s"]) == (True, 0.4)
        await client.send(END)
        events = await client.rest()
    assert texts(events) == ["1"]
    assert client.closed == (1000, "")


async def test_a_session_waits_for_a_socket_only_so_long():
    async with serving(FakeModels(), retention_s=0.05) as service:
        async with native(service) as (client, ready):
            await client.send(exact(speak(1)))
            await client.until(type="partial")
            client.drop()
        assert [await service.counts.get(), await service.counts.get()] == [1, 0]
        resume = {"session": ready["session"], "seq": 5, "from_s": 0.0}
        async with native(service, resume=resume) as (client, again):
            assert not again["resumed"]
            await client.send(exact(speak(1)), END)
            assert texts(await client.rest()) == ["1"]


@pytest.mark.parametrize("retention_s", [0.0, 30.0])
@pytest.mark.parametrize("moment", ["at once", "opening", "received", "recognised"])
async def test_a_client_that_vanishes_leaves_nothing_behind(moment, retention_s):
    models = FakeModels()
    async with serving(models, retention_s=retention_s) as service:
        models.feeding.shut()
        gate = {"opening": models.opening, "received": models.activity}.get(moment, models.feeding)
        gate.shut()
        async with service.connect() as client:
            if moment != "at once":
                native_form = retention_s == 0
                v1 = {"settings": {"tra": {"model": STREAMING}}}
                await client.send({"type": "start"} if native_form else v1)
                await client.send(*frames(exact(speak(*range(1, 60))), FRAME))
                await gate.reached.wait()
            client.drop()
        await service.idle()
        service.assert_free()
