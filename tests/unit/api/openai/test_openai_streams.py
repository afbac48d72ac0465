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


class Stuck:
    """Recognition that yields one segment and then hangs."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, number: int) -> None:
        if number == 0:
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
