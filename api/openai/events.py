"""A transcript as OpenAI's server-sent events, sent while later audio is still recognised."""

import asyncio
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

STATUS_WAIT_S = 0.5
"""How long the headers wait for the first item: what cannot be decoded has failed by then."""
KEEP_ALIVE_S = 5.0
"""Longest silence of a stream: proxies and clients give up on connections that send nothing."""
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients skip."""

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


class _Items:
    """The items of ``work``, each taken in a task: to stop waiting for one does not end the work.

    ``within_deadline`` bounds the time that each takes.
    """

    def __init__(
        self, work: Work, within_deadline: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self._work = work
        self._within_deadline = within_deadline
        self._task: asyncio.Task[Item] | None = None

    async def next(self, timeout_s: float) -> Item | None:
        """The next item, None if it takes longer than ``timeout_s``. Raises what the work does."""
        if self._task is None:
            self._task = asyncio.create_task(self._take())
        done, _ = await asyncio.wait({self._task}, timeout=timeout_s)
        if not done:
            return None
        task, self._task = self._task, None
        return task.result()

    async def _take(self) -> Item:
        async with self._within_deadline():
            return await anext(self._work)

    async def aclose(self) -> None:
        """End the work."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._work.aclose()


class EventStream(StreamingResponse):
    """The events of ``work``, with a comment whenever there is none for KEEP_ALIVE_S.

    An error within the first STATUS_WAIT_S is raised, so that it has a status of its own; a later
    one ends the stream as an event with OpenAI's error object. Whatever ends the stream ends the
    work. ``within_deadline`` bounds each wait.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        work: Work,
        form: SpeechForm,
        within_deadline: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._items = _Items(work, within_deadline)
        self._first: Item | None = None
        # Proxies must not buffer the answer, or the deltas would arrive late.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._lines(SpeechEvents(form)), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._items):
            self._first = await self._items.next(STATUS_WAIT_S)
            await super().__call__(scope, receive, send)

    async def _lines(self, events: SpeechEvents) -> AsyncIterator[bytes]:
        item = self._first
        try:
            while True:
                while item is None:
                    yield KEEP_ALIVE
                    item = await self._items.next(KEEP_ALIVE_S)
                for event in events.of(item):
                    yield _line(event)
                if isinstance(item, Transcript):
                    return
                item = await self._items.next(KEEP_ALIVE_S)
        except Exception as error:
            yield _line({"error": error_object(problem_of(error))})


def _line(event: Event) -> bytes:
    return b"data: " + to_json(event, inf_nan_mode="null") + b"\n\n"
