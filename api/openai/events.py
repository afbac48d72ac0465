"""A transcript as OpenAI's server-sent events, sent while later audio is still recognised."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Literal, NotRequired

from pydantic_core import to_json
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from api.errors import problem_of
from api.openai.errors import OpenAIErrorBody, error_object
from api.openai.requests import SpeechForm
from api.openai.responses import (
    DiarizedSegment,
    Logprob,
    Speakers,
    Transcription,
    add_logprobs,
    add_ours,
    diarized_segment,
    logprobs,
    usage,
)
from speech.transcript import Segment, Transcript

Item = Segment | Transcript
Work = AsyncGenerator[Item, None]
"""What :meth:`api.service.SpeechService.stream` yields."""


class TextDelta(TypedDict):
    """Text that follows the deltas before it; all deltas together are the text."""

    type: Literal["transcript.text.delta"]
    delta: str
    logprobs: NotRequired[list[Logprob]]
    segment_id: NotRequired[str]


class TextDone(Transcription):
    """The whole text; the last event."""

    type: Literal["transcript.text.done"]


Event = TextDelta | DiarizedSegment | TextDone | OpenAIErrorBody


class SpeechEvents:
    """The events of one stream; speakers get letters, and segments numbers, in their order."""

    def __init__(self, form: SpeechForm) -> None:
        self._form = form
        self._speakers = Speakers() if form.response_format == "diarized_json" else None
        self._segments = 0

    def of(self, item: Item) -> Iterator[Event]:
        """The events of a segment, or of the transcript that ends the stream."""
        if isinstance(item, Transcript):
            yield self._done(item)
            return
        text = item.text.strip()
        if not text:
            return
        delta: TextDelta = {
            "type": "transcript.text.delta",
            "delta": f" {text}" if self._segments else text,
        }
        self._segments += 1
        if self._form.wants_logprobs:
            delta["logprobs"] = logprobs(item.words)
        if self._speakers is None:
            yield delta
            return
        segment = diarized_segment(item, self._segments, self._speakers)
        delta["segment_id"] = segment["id"]
        yield delta
        yield segment

    def _done(self, transcript: Transcript) -> TextDone:
        body: TextDone = {
            "type": "transcript.text.done",
            "text": transcript.text,
            "usage": usage(transcript),
        }
        add_ours(body, transcript, self._form, self._speakers)
        if self._form.wants_logprobs:
            add_logprobs(body, transcript)
        return body


class EventStream(StreamingResponse):
    """The events of ``work``, of which ``first`` is the first item, taken already.

    ``within_deadline`` bounds each wait. An error ends the stream as an event with OpenAI's error
    object; whatever ends the stream ends the work.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Item,
        work: Work,
        form: SpeechForm,
        within_deadline: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        # Proxies must not buffer the answer, or the deltas would arrive late.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_lines(first, work, SpeechEvents(form), within_deadline), headers=headers)
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._work):
            await super().__call__(scope, receive, send)


async def _lines(
    item: Item,
    work: Work,
    events: SpeechEvents,
    within_deadline: Callable[[], AbstractAsyncContextManager[None]],
) -> AsyncIterator[bytes]:
    try:
        while True:
            for event in events.of(item):
                yield _line(event)
            if isinstance(item, Transcript):
                return
            async with within_deadline():
                item = await anext(work)
    except Exception as error:
        yield _line({"error": error_object(problem_of(error))})


def _line(event: Event) -> bytes:
    return b"data: " + to_json(event, inf_nan_mode="null") + b"\n\n"
