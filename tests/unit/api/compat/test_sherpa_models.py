"""``WS /ws`` with the demo models, and with a streaming model."""

import itertools
import json

import numpy as np
import pytest
import soxr

from speech.audio import SAMPLE_RATE
from tests.unit.api.compat.vosk_client import (
    EOF,
    LAST,
    LONGEST_S,
    SECOND,
    SILENT,
    converse,
    errors,
    results,
    text,
    times,
    words,
)
from tests.unit.heldout import conversation, plain
from tests.unit.live_audio import exact, frames, pcm, silence, speak
from tests.unit.live_service import STREAMING

# Server B: the demo models


async def test_the_size_of_frames_changes_no_word(demo, speech):
    first, *others = [
        words(await converse(demo, pcm(speech), frame=frame))
        for frame in (SECOND // 50, 3201, 9999, 8 * SECOND)
    ]
    assert len(first) > 20
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("/ws", {}),
        ("/ws?model=demo-gigaam", {}),
        ("/ws", {"model": "demo-gigaam"}),
        ("/ws?model=demo-vosk", {"model": "demo-whisper"}),
    ],
)
async def test_any_model_of_words_may_be_chosen(demo, spoken, speech, path, config):
    asked = len(demo.ports.transcriber.seconds)
    answers = await converse(demo, pcm(speech), path=path, config=config)
    assert errors([clip.text for clip in spoken], text(answers)) < 0.3
    assert text(answers) == text(answers).lower()
    assert not set(".,!?") & set(text(answers))
    assert max(demo.ports.transcriber.seconds[asked:]) <= LONGEST_S


async def test_telephone_audio_is_recognised_at_its_own_rate(demo, spoken, speech):
    narrow = soxr.resample(speech, SAMPLE_RATE, 8000)
    answers = await converse(demo, pcm(narrow), config={"sample_rate": 8000})
    assert errors([clip.text for clip in spoken], text(answers)) < 0.3


async def test_words_are_where_they_were_spoken_for_more_than_a_minute(demo, spoken):
    audio = conversation(spoken, seconds=65)
    found = words(await converse(demo, pcm(audio), frame=SECOND))
    assert times(found) == sorted(times(found))
    starts, begin = [], 0.0
    for clip in itertools.cycle(spoken):
        starts += [(plain(word), begin + start) for word, start, _ in clip.words]
        begin += len(clip.samples) / SAMPLE_RATE + 1.0
        if begin * SAMPLE_RATE >= len(audio):
            break
    late = [
        min((at - word["start"] for name, at in starts if name == word["word"]), key=abs, default=9)
        for word in found
    ]
    first, second = np.array_split([seconds for seconds in late if abs(seconds) < 1], 2)
    assert len(first) + len(second) > 0.7 * len(starts)
    assert abs(np.median(first)) < 0.2
    assert abs(np.median(second) - np.median(first)) < 0.05


async def test_noise_makes_no_error(demo):
    noise = np.random.default_rng(1).normal(0, 0.01, 20 * SAMPLE_RATE).clip(-1, 1)
    results(await converse(demo, pcm(noise)))


# Server B: the small streaming model


async def test_a_streaming_model_sends_the_text_so_far_whenever_it_grows(quick):
    expected = ""
    async with quick.connect(f"/ws?model={STREAMING}") as client:
        await client.send({"config": {"wait_null_answers": False}})
        for number, pause_s in ((1, 0.0), (2, 0.0), (3, 2.0), (4, 0.0), (5, 1.0), (6, 0.0)):
            await client.send(*frames(exact(speak(number), silence(pause_s)), 3200))
            expected = f"{expected} {number}".strip()
            answer = SILENT | {"silence": False, "data": expected}
            assert await client.receive() == answer
        await client.send(EOF)
        assert await client.rest() == [answer | {"last_message": True}]


async def test_the_text_of_a_streaming_model_never_shrinks_when_sent_at_once(quick):
    audio = exact(*[part for n in range(1, 40) for part in (speak(n), silence(n % 3))])
    received = results(await converse(quick, audio, path=f"/ws?model={STREAMING}", frame=3200))
    assert all(later.startswith(before) for before, later in itertools.pairwise(received))
    assert received[-1].split() == [str(n) for n in range(1, 40)]


@pytest.mark.parametrize("wait", [True, False])
async def test_a_streaming_model_answers_silence_like_the_full_one(quick, wait):
    config = {"model": STREAMING, "wait_null_answers": wait}
    answers = await converse(quick, exact(silence(20)), config=config)
    assert answers[-1] == LAST
    assert set(map(json.dumps, answers[:-1])) == ({json.dumps(SILENT)} if wait else set())


async def test_the_streaming_demo_model_recognises(demo, spoken, speech):
    received = results(await converse(demo, pcm(speech), path=f"/ws?model={STREAMING}", frame=3200))
    assert errors([clip.text for clip in spoken], received[-1]) < 0.3
