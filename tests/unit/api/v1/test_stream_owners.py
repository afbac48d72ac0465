"""A stream belongs to the name of the key that opened it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, speak
from tests.unit.live_service import Client, LiveService, Message, serving

KEYS = (
    "a-key name=mine\na-new-key name=mine\nanother-key name=other\n"
    "one-at-once name=third concurrent=1\n"
)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[LiveService]:
    keys = tmp_path / "keys.txt"
    keys.write_text(KEYS)
    async with serving(FakeModels(), whole=True, keys_file=str(keys), max_sessions=2) as service:
        yield service


@asynccontextmanager
async def stream(
    service: LiveService, key: str, resume: Message | None = None
) -> AsyncIterator[tuple[Client, Message]]:
    """A native stream and its first message."""
    async with service.connect(headers={"X-API-Key": key}) as client:
        await client.send({"type": "start", "resume": resume})
        yield client, await client.receive()


async def finals(client: Client, *audio: bytes) -> list[str]:
    """Send the last audio; the texts until the server closes."""
    await client.send(*audio, {"type": "end"})
    return [m["text"] for m in await client.rest() if m["type"] == "final"]


async def dropped(service: LiveService, key: str) -> dict[str, Any]:
    """How the client of a dropped socket would resume its stream."""
    async with stream(service, key) as (client, ready):
        await client.send(exact(speak(1)))
        seen = await client.until(type="partial")
        client.drop()
    return {"session": ready["session"], "seq": seen[-1]["seq"], "from_s": 0.0}


async def test_another_key_of_the_same_name_resumes_a_stream(service: LiveService) -> None:
    resume = await dropped(service, "a-key")
    async with stream(service, "a-new-key", resume) as (client, ready):
        assert ready["resumed"]
        assert await finals(client, exact(speak(2))) == ["1 2"]


@pytest.mark.parametrize("running", [True, False])
async def test_a_stream_of_another_name_is_as_if_it_did_not_exist(
    service: LiveService, running: bool
) -> None:
    if running:
        resume = await dropped(service, "a-key")
    else:
        resume = {"session": "0123456789abcdef", "seq": 2, "from_s": 0.0}
    async with stream(service, "another-key", resume) as (client, ready):
        assert ready == {
            "type": "ready",
            "session": resume["session"],
            "resumed": False,
            "seq": resume["seq"],
            "audio_from_s": 0.0,
            "model": ready["model"],
            "partial_model": None,
            "window_s": 30.0,
        }
        assert await finals(client, exact(speak(7))) == ["7"]
    if running:
        async with stream(service, "a-key", resume) as (client, ready):
            assert ready["resumed"]
            assert await finals(client, exact(speak(2))) == ["1 2"]


async def test_streams_of_one_id_and_two_names_run_side_by_side(service: LiveService) -> None:
    async with stream(service, "a-key") as (mine, ready):
        await mine.send(exact(speak(1)))
        await mine.until(type="partial")
        resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
        async with stream(service, "another-key", resume) as (other, foreign):
            assert (foreign["session"], foreign["resumed"]) == (ready["session"], False)
            assert await finals(mine, exact(speak(2))) == ["1 2"]
            assert mine.closed == (1000, "")
            assert await finals(other, exact(speak(7))) == ["7"]


async def test_a_stream_of_another_name_keeps_its_place_while_there_is_another(
    service: LiveService,
) -> None:
    resume = await dropped(service, "a-key")
    async with stream(service, "another-key") as (client, ready):
        assert not ready["resumed"]
        await client.close()
    async with stream(service, "a-key", resume) as (client, ready):
        assert ready["resumed"]
        await finals(client)


async def test_streams_that_wait_to_be_resumed_count_for_their_key(service: LiveService) -> None:
    for _ in range(3):
        resume = await dropped(service, "one-at-once")
        await service.idle()
        assert service.streams.sessions.count == 1
    async with stream(service, "one-at-once", resume) as (client, ready):
        assert ready["resumed"], "a stream makes no room for its own client"
        assert await finals(client, exact(speak(2))) == ["1 2"]
