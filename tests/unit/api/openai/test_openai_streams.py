"""OpenAI's audio API: transcripts as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.audio import (
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionTextSegmentEvent,
)

from api.openai import events
from speech.errors import (
    EngineFailed,
    UnsupportedAudio,
)
from speech.transcript import Segment, Transcript
from tests.unit.openai_service import (
    FILE,
    TEXT,
    USAGE,
    WAIT_S,
    serving,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_stream_has_a_delta_for_each_segment_and_ends_with_the_text(api, service):
    stream = await api.transcribe(model="gpt-4o-transcribe", stream=True)
    *deltas, done = [event async for event in stream]
    assert all(isinstance(event, TranscriptionTextDeltaEvent) for event in deltas)
    assert [event.delta for event in deltas] == ["Hello there.", " Good.", " Bye."]
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert done.text == "".join(event.delta for event in deltas) == TEXT
    assert done.usage.to_dict() == USAGE
    assert service.options.transcribe.model == "large-v3-turbo"


async def test_the_synchronous_client_reads_a_stream_as_well(api):
    def ask(sdk: OpenAI) -> list[str]:
        stream = sdk.audio.transcriptions.create(file=FILE, model="whisper-1", stream=True)
        return [event.type for event in stream]

    types = await api.in_thread(ask)
    assert types == ["transcript.text.delta"] * 3 + ["transcript.text.done"]


async def test_a_diarized_stream_has_each_segment_after_its_text(api):
    stream = await api.transcribe(response_format="diarized_json", stream=True)
    *events, done = [event async for event in stream]
    assert [event.type for event in events] == [
        "transcript.text.delta", "transcript.text.segment",
    ] * 3  # fmt: skip
    segments = [event for event in events if isinstance(event, TranscriptionTextSegmentEvent)]
    assert [(s.id, s.speaker, s.text) for s in segments] == [
        ("seg_001", "A", "Hello there."), ("seg_002", "B", "Good."), ("seg_003", "A", "Bye."),
    ]  # fmt: skip
    assert [event.segment_id for event in events[::2]] == ["seg_001", "seg_002", "seg_003"]
    assert (done.type, done.text) == ("transcript.text.done", TEXT)


async def test_a_stream_can_have_log_probabilities(api):
    stream = await api.transcribe(include=["logprobs"], stream=True)
    *deltas, done = [event async for event in stream]
    assert [len(event.logprobs) for event in deltas] == [2, 1, 1]
    assert [p.token for p in done.logprobs] == [" Hello", " there.", " Good.", " Bye."]


async def test_a_stream_is_lines_of_data_that_no_proxy_keeps(api, service):
    service.answer = Transcript(0.4, segments=(), warnings=("odd file",))
    answer = await api.post(stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.text == (
        'data: {"type":"transcript.text.done","text":"",'
        '"usage":{"type":"duration","seconds":1},"warnings":["odd file"]}\n\n'
    )


async def test_a_delta_arrives_before_later_audio_is_recognised(api, service):
    read = asyncio.Event()
    service.before_segment = lambda number: read.wait() if number else asyncio.sleep(0)
    async with asyncio.timeout(WAIT_S):
        stream = await api.transcribe(stream=True)
        first = await anext(stream)
        assert first.delta == "Hello there."
        read.set()
        assert [event.type async for event in stream][-1] == "transcript.text.done"


@pytest.fixture
def slow(service, monkeypatch) -> asyncio.Event:
    """Segments come when the event is set; a stream does not wait with headers and comments."""
    monkeypatch.setattr(events, "STATUS_WAIT_S", 0.0)
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.01)
    ready = asyncio.Event()

    async def wait(number: int) -> None:
        await ready.wait()

    service.before_segment = wait
    return ready


async def test_the_headers_and_comments_arrive_before_anything_is_recognised(api, slow):
    async with (
        asyncio.timeout(WAIT_S),
        api.http.stream("POST", "/audio/transcriptions", files={"file": FILE},
                        data={"model": "whisper-1", "stream": "true"}) as answer,
    ):  # fmt: skip
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert [await anext(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        slow.set()
        data = [line async for line in lines if line.startswith("data: ")]
    assert len(data) == 4


async def test_comments_are_sent_between_two_events(api, service, slow):
    async def wait(number: int) -> None:
        if number == 1:
            await slow.wait()

    service.before_segment = wait
    async with (
        asyncio.timeout(WAIT_S),
        api.http.stream("POST", "/audio/transcriptions", files={"file": FILE},
                        data={"model": "whisper-1", "stream": "true"}) as answer,
    ):  # fmt: skip
        lines = answer.aiter_lines()
        while "Hello there." not in await anext(lines):
            pass
        assert [await anext(lines) for _ in range(5)] == ["", *[": keep-alive", ""] * 2]
        slow.set()
        rest = [line async for line in lines if line.startswith("data: ")]
    assert len(rest) == 3


async def test_openais_clients_skip_the_comments(api, slow):
    async def let_go() -> None:
        await asyncio.sleep(0.1)
        slow.set()

    letting = asyncio.create_task(let_go())
    stream = await api.transcribe(stream=True)
    *deltas, done = [event async for event in stream]
    await letting
    assert "".join(event.delta for event in deltas) == done.text == TEXT
    slow.clear()

    def ask(sdk: OpenAI) -> list[str]:
        stream = sdk.audio.transcriptions.create(file=FILE, model="whisper-1", stream=True)
        return [event.type for event in stream]

    letting = asyncio.create_task(let_go())
    assert await api.in_thread(ask) == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
    await letting


async def test_an_error_after_the_headers_is_an_event_that_the_client_raises(api, service, slow):
    async def fail(number: int) -> None:
        await asyncio.sleep(0.05)
        raise EngineFailed("the recogniser gave up")

    service.before_segment = fail
    with pytest.raises(openai.APIError) as raised:
        [event async for event in await api.transcribe(stream=True)]
    assert (raised.value.code, raised.value.message) == ("engine_failed", "the recogniser gave up")


async def test_a_client_that_leaves_before_the_first_segment_ends_the_work(service, slow):
    stuck = service.before_segment = Stuck(after=0)
    async with serving(service) as api, asyncio.timeout(WAIT_S):
        stream = await api.transcribe(stream=True)
        await stuck.begun.wait()
        await stream.close()
        await stuck.cancelled.wait()


class Stuck:
    """Recognition that yields so many segments and then hangs."""

    def __init__(self, after: int = 1) -> None:
        self._after = after
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, number: int) -> None:
        if number < self._after:
            return
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_a_client_that_goes_away_cancels_the_recognition_and_frees_its_place(service):
    stuck = service.before_segment = Stuck()
    async with serving(service, max_concurrent_requests=1) as api, asyncio.timeout(WAIT_S):
        stream = await api.transcribe(stream=True)
        await anext(stream)
        await stuck.begun.wait()
        with pytest.raises(openai.InternalServerError) as busy:
            await api.transcribe()
        assert (busy.value.status_code, busy.value.code) == (503, "overloaded")
        await stream.close()
        await stuck.cancelled.wait()
        # The place is free a moment after the recognition was cancelled.
        while (await api.post()).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_between_two_segments_ends_the_work(service):
    ended = asyncio.Event()
    stream = service.stream

    async def watched(data: bytes, options: Any) -> AsyncIterator[Any]:
        try:
            async for item in stream(data, options):
                yield item
        finally:
            ended.set()

    service.stream = watched
    service.answer = Transcript(1.0, segments=(Segment(0, 1, " x" * 250_000),) * 50)
    async with serving(service) as api, asyncio.timeout(WAIT_S):
        async with api.http.stream(
            "POST", "/audio/transcriptions", files={"file": FILE},
            data={"model": "whisper-1", "stream": "true"},
        ) as answer:  # fmt: skip
            await anext(answer.aiter_bytes())
        await ended.wait()


async def test_what_fails_before_the_first_segment_is_an_ordinary_error(api, service):
    service.answer = UnsupportedAudio("no audio track")
    with pytest.raises(openai.BadRequestError, match="no audio track"):
        await api.transcribe(stream=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EngineFailed("the recogniser gave up"), ("engine_failed", "the recogniser gave up")),
        (RuntimeError("/secret/path"), ("internal_error", "internal error in request req-7")),
    ],
)
async def test_what_fails_later_is_an_event_that_the_client_raises(api, service, error, expected):
    async def fail(number: int) -> None:
        if number:
            raise error

    service.before_segment = fail
    stream = await api.transcribe(stream=True, extra_headers={"X-Request-ID": "req-7"})
    assert (await anext(stream)).delta == "Hello there."
    with pytest.raises(openai.APIError) as raised:
        await anext(stream)
    assert (raised.value.code, raised.value.message) == expected
    assert raised.value.type == "server_error"


async def test_a_stream_beyond_its_deadline_ends_with_the_error(service):
    service.before_segment = Stuck()
    async with serving(service, request_timeout_s=0.2) as api:
        with pytest.raises(openai.APIError) as raised:
            [event async for event in await api.transcribe(stream=True)]
    assert raised.value.code == "deadline_exceeded"
