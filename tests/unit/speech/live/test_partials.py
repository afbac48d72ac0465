"""The partials of one utterance after the other, and what they leave to the finals."""

import asyncio

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed
from speech.live.agreement import Agreement
from speech.live.audio_buffer import AudioBuffer
from speech.live.endpointing import Utterance
from speech.live.partials import (
    NoPartials,
    RerecognisedPartials,
    StreamedPartials,
    final_words,
    partials_for,
)
from speech.live.session_options import FrameSynchronous, Mode, Pieces, TwoPass, WholeUtterances
from speech.transcript import Word

Words = tuple[Word, ...]
SECOND = SAMPLE_RATE


def words_of(samples: Samples) -> Words:
    """The fakes recognise one word per second, the number of the second in the buffer."""
    seconds = samples[::SECOND]
    return tuple(Word(f" {n:g}", float(i), i + 1.0) for i, n in enumerate(seconds))


def buffer_of(seconds: int) -> AudioBuffer:
    buffer = AudioBuffer()
    buffer.append(np.repeat(np.arange(seconds, dtype=np.float32), SECOND))
    return buffer


class Stream:
    def __init__(self) -> None:
        self.fed: list[Samples] = [np.zeros(0, np.float32)]
        self.utterances: list[list[float]] = []

    async def feed(self, samples: Samples) -> Words:
        self.fed.append(samples)
        return words_of(np.concatenate(self.fed))

    async def finish(self, trailing_silence_s: float = 0.0) -> Words:
        utterance, self.fed = np.concatenate(self.fed), [np.zeros(0, np.float32)]
        self.utterances.append(utterance[::SECOND].tolist())
        return words_of(utterance)

    async def close(self) -> None: ...


class Emitted:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, begin: int, end: int, words: Words) -> None:
        self.texts.append("".join(word.text for word in words).strip())


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def emitted() -> Emitted:
    return Emitted()


def streamed(stream: Stream, emitted: Emitted | None, **options: bool) -> StreamedPartials:
    wanted = {"makes_finals": True, "committed_only": False} | options
    return StreamedPartials(stream, buffer_of(20), emitted, **wanted)


async def test_a_stream_gets_each_sample_of_an_utterance_once(
    stream: Stream, emitted: Emitted
) -> None:
    partials = streamed(stream, emitted)
    for end in (4, 4, 6):
        await partials.grow(2 * SECOND, end * SECOND)
    utterance = Utterance(2 * SECOND, 7 * SECOND, 8 * SECOND)
    draft = await partials.finish(utterance)
    assert emitted.texts == ["2 3", "2 3 4 5"]
    assert stream.utterances == [[2, 3, 4, 5, 6, 7]]
    assert draft.words is not None
    assert [word.text for word in draft.words] == [" 2", " 3", " 4", " 5", " 6"]


async def test_a_stream_gets_what_lies_behind_a_cut_again(stream: Stream, emitted: Emitted) -> None:
    partials = streamed(stream, emitted)
    await partials.grow(0, 8 * SECOND)
    await partials.finish(Utterance(0, 5 * SECOND, 8 * SECOND, cut=True))
    await partials.grow(5 * SECOND, 9 * SECOND)
    await partials.finish(Utterance(5 * SECOND, 9 * SECOND, 9 * SECOND))
    assert stream.utterances == [[0, 1, 2, 3, 4, 5, 6, 7], [5, 6, 7, 8]]


async def test_an_utterance_that_was_discarded_leaves_nothing_to_the_next(
    stream: Stream, emitted: Emitted
) -> None:
    partials = streamed(stream, emitted, committed_only=True)
    for end in (4, 6):
        await partials.grow(0, end * SECOND)
    await partials.discard()
    draft = await partials.finish(Utterance(10 * SECOND, 12 * SECOND, 12 * SECOND))
    assert draft.agreement.committed == ()
    assert stream.utterances[-1] == [10, 11]


async def test_committed_words_of_a_stream_leave_out_the_last_that_may_grow(
    stream: Stream, emitted: Emitted
) -> None:
    partials = streamed(stream, emitted, committed_only=True, makes_finals=False)
    for end in (3, 5):
        await partials.grow(0, end * SECOND)
    assert emitted.texts == ["", "0 1"]
    draft = await partials.finish(Utterance(0, 5 * SECOND, 5 * SECOND))
    assert draft.words is None
    assert [word.text for word in draft.agreement.committed] == [" 0", " 1"]


class Recogniser:
    def __init__(self) -> None:
        self.passes: list[float] = []
        self.failure: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, samples: Samples) -> Words:
        self.passes.append(len(samples) / SECOND)
        await self.free.wait()
        if self.failure is not None:
            raise self.failure
        return words_of(samples)


@pytest.fixture
def recogniser() -> Recogniser:
    return Recogniser()


def rerecognised(recogniser: Recogniser, emitted: Emitted) -> RerecognisedPartials:
    return RerecognisedPartials(recogniser, buffer_of(20), emitted, committed_only=False)


async def grown(partials: RerecognisedPartials, begin: int, ends: range) -> None:
    for end in ends:
        await partials.grow(begin * SECOND, end * SECOND)
        for _ in range(5):
            await asyncio.sleep(0)


async def test_an_utterance_is_recognised_again_when_it_has_grown(
    recogniser: Recogniser, emitted: Emitted
) -> None:
    await grown(rerecognised(recogniser, emitted), 0, range(1, 11))
    assert recogniser.passes == [1, 2, 3, 4, 5, 7, 9]
    assert emitted.texts[-1] == "0 1 2 3 4 5 6 7 8"


async def test_one_pass_runs_at_a_time_and_is_given_up_with_its_utterance(
    recogniser: Recogniser, emitted: Emitted
) -> None:
    before = asyncio.all_tasks()
    partials = rerecognised(recogniser, emitted)
    recogniser.free.clear()
    await grown(partials, 0, range(1, 9))
    draft = await partials.finish(Utterance(0, 8 * SECOND, 8 * SECOND))
    assert (recogniser.passes, emitted.texts, draft.words) == ([1], [], None)
    assert asyncio.all_tasks() == before
    recogniser.free.set()
    await grown(partials, 9, range(10, 11))
    assert emitted.texts == ["9"]


async def test_a_pass_that_fails_unexpectedly_is_logged(
    recogniser: Recogniser, emitted: Emitted, caplog: pytest.LogCaptureFixture
) -> None:
    partials = rerecognised(recogniser, emitted)
    recogniser.failure = RuntimeError("a fault of the pass")
    await grown(partials, 0, range(1, 2))
    await partials.stop()
    assert "a fault of the pass" in caplog.text


async def test_a_pass_that_fails_is_no_partial_and_the_next_one_runs(
    recogniser: Recogniser, emitted: Emitted
) -> None:
    partials = rerecognised(recogniser, emitted)
    recogniser.failure = EngineFailed("broken")
    await grown(partials, 0, range(1, 2))
    recogniser.failure = None
    await grown(partials, 0, range(2, 3))
    assert emitted.texts == ["0 1"]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (FrameSynchronous("fast", partials=False), StreamedPartials),
        (TwoPass("full", "fast"), StreamedPartials),
        (WholeUtterances("full"), RerecognisedPartials),
        (WholeUtterances("full", partials=False), NoPartials),
        (Pieces("full"), NoPartials),
    ],
)
async def test_each_mode_has_its_partials(
    mode: Mode, kind: type, stream: Stream, recogniser: Recogniser, emitted: Emitted
) -> None:
    partials = partials_for(mode, buffer_of(20), stream, recogniser, emitted)
    assert isinstance(partials, kind)
    await partials.grow(0, 4 * SECOND)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    draft = await partials.finish(Utterance(0, 4 * SECOND, 4 * SECOND))
    assert bool(emitted.texts) == (mode in (TwoPass("full", "fast"), WholeUtterances("full")))
    assert (draft.words is not None) == isinstance(mode, FrameSynchronous)


@pytest.mark.parametrize(("cut", "count"), [(False, 3), (True, 2)])
def test_committed_words_stay_though_they_lie_behind_the_end_unless_it_is_a_cut(
    cut: bool, count: int
) -> None:
    words = words_of(np.repeat(np.arange(3, dtype=np.float32), SECOND))
    utterance = Utterance(0, 2 * SECOND, 3 * SECOND, cut=cut)
    found = final_words(Agreement(words), words, utterance)
    assert len(found) == count
    assert all(word.end <= 2.0 for word in found)
