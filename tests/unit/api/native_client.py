"""A client of the native stream, and what its events have in common."""

import itertools
from contextlib import asynccontextmanager

from speech.audio import SAMPLE_RATE
from tests.unit.heldout import wer
from tests.unit.live_audio import frames

SECOND = 2 * SAMPLE_RATE
"""Bytes of PCM16 at 16 kHz."""
FRAME = SECOND // 10
END = {"type": "end"}


def errors(expected, recognised):
    return wer(" ".join(clip.text for clip in expected), " ".join(recognised))


@asynccontextmanager
async def native(service, **start):
    """A native socket and its first message."""
    async with service.connect() as client:
        await client.send({"type": "start", **start})
        yield client, await client.receive()


async def stream(service, audio, *, frame=FRAME, **start):
    """All events of some audio, sent at once."""
    async with native(service, **start) as (client, _):
        await client.send(*frames(audio, frame), END)
        events = await client.rest()
    assert client.closed == (1000, "")
    assert_sound(events)
    return events


async def paced(client, audio):
    """The events of some audio of which no second is sent before the last was processed."""
    events = []
    for second in frames(audio, SECOND):
        await client.send(*frames(second, SECOND // 50))
        if len(second) == SECOND:
            events += await client.until(type="progress")
    return events


SHAPES = {
    "speech_start": ["type", "seq", "utterance", "at"],
    "speech_end": ["type", "seq", "utterance", "at"],
    "progress": ["type", "seq", "processed_s", "lag_s"],
    "done": ["type", "seq"],
}
RESULT_FIELDS = ["type", "seq", "utterance", "start", "end", "text", "words", "lag_s"]


def assert_sound(events):
    """What holds of every whole stream."""
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
    assert events[-1]["type"] == "done"
    for event in events:
        fields = [name for name in event if name not in ("emotion", "speaker", "voice")]
        assert fields == SHAPES.get(event["type"], RESULT_FIELDS)
        assert event.get("lag_s", 0) >= 0
        for word in event.get("words", []):
            assert list(word) == ["word", "start", "end", "probability"]
            assert event["start"] <= word["start"] <= word["end"] <= event["end"]
    last = finals(events)
    assert [final["utterance"] for final in last] == list(range(len(last)))
    assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(last))
    for final in last:
        about = [e for e in events if e.get("utterance") == final["utterance"]]
        assert about[-1] is final
        assert {event["type"] for event in about[:-1]} <= {"speech_start", "partial", "speech_end"}


def finals(events):
    return [event for event in events if event["type"] == "final"]


def texts(events):
    return [final["text"] for final in finals(events)]


def numbers(first, last):
    return " ".join(str(n) for n in range(first, last + 1))
