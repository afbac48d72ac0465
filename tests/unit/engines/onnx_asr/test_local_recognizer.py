"""Streams of a local recogniser: utterances, neighbours, places, failures, loading of models."""

import asyncio
import gc
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.onnx_asr.local_recognizer import LocalRecognizer, LocalStream
from engines.onnx_asr.streaming import Outcome, Step, StreamingEngine, StreamState
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, InvalidRequest, ModelUnavailable, Overloaded
from tests.unit.engines.onnx_asr.streaming_models import MODEL, Words, alone, entry_of, toy
from tests.unit.heldout import Clip

WAIT_S = 30.0
NOTHING = np.zeros(0, np.float32)


@pytest.fixture
def recognizer(engine: StreamingEngine) -> LocalRecognizer:
    return LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=32)


class Watched(StreamingEngine):
    """Records the sizes of what it is fed, and takes none of it until its gate is open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(entry_of(MODEL), folder, device="cpu")
        self.sizes: list[list[int]] = []
        self.started = threading.Event()
        self.gate = threading.Event()

    def feed(self, steps: Sequence[Step]) -> list[Outcome]:
        self.sizes.append([len(step.samples) for step in steps])
        self.started.set()
        assert self.gate.wait(WAIT_S)
        return super().feed(steps)


class Decoding(StreamingEngine):
    """Records the streams that it decodes together, each batch before it stops at the gate."""

    def __init__(self, folder: Path) -> None:
        super().__init__(entry_of(MODEL), folder, device="cpu")
        self.batches: list[list[StreamState]] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()

    def decode(self, streams: Sequence[StreamState]) -> list[Outcome]:
        self.batches.append(list(streams))
        self.begun.release()
        assert self.gate.wait(WAIT_S)
        return super().decode(streams)

    async def another(self) -> None:
        """Wait until one more batch has begun."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=WAIT_S)


def pieces(samples: Samples, size: int) -> list[Samples]:
    return [samples[first : first + size] for first in range(0, len(samples), size)]


async def decode_utterance(stream: LocalStream, audio: Sequence[Samples]) -> Words:
    """The words of one utterance; what holds for partial results is checked on the way."""
    fed = 0
    for piece in audio:
        words = await stream.feed(piece)
        fed += len(piece)
        assert_sound(words, fed)
    words = await stream.finish()
    assert_sound(words, fed)
    return words


def assert_sound(words: Words, samples: int) -> None:
    edges = [edge for word in words for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert all(0 <= edge <= samples / SAMPLE_RATE for edge in edges)
    assert {word.probability for word in words} <= {None}


@pytest.mark.parametrize("milliseconds", [20, 100, 333, 1000, 8000])
async def test_the_size_of_a_chunk_changes_nothing(
    recognizer: LocalRecognizer, spoken: list[Clip], expected: list[Words], milliseconds: int
) -> None:
    stream = await recognizer.open(MODEL)
    for clip, words in zip(spoken[:3], expected[:3], strict=True):
        audio = pieces(clip.samples, milliseconds * SAMPLE_RATE // 1000)
        assert await decode_utterance(stream, audio) == words


@pytest.mark.parametrize("silence_s", [0.1, 0.35, 0.6, 2.0])
async def test_trailing_silence_counts_towards_the_silence_that_flushes_the_model(
    recognizer: LocalRecognizer,
    spoken: list[Clip],
    expected: list[Words],
    silence_s: float,
) -> None:
    stream = await recognizer.open(MODEL)
    silence = np.zeros(round(silence_s * SAMPLE_RATE), np.float32)
    for clip, words in zip(spoken[:3], expected[:3], strict=True):
        await stream.feed(np.concatenate((clip.samples, silence)))
        found = await stream.finish(silence_s)
        assert [word.text for word in found] == [word.text for word in words]


@pytest.mark.parametrize("neighbours", [1, 8, 24])
async def test_streams_at_the_same_time_do_not_disturb_each_other(
    recognizer: LocalRecognizer, spoken: list[Clip], expected: list[Words], neighbours: int
) -> None:
    async def listen(number: int) -> list[Words]:
        stream = await recognizer.open(MODEL)
        order = [(number + i) % len(spoken) for i in range(2)]
        size = 700 + 413 * number
        return [await decode_utterance(stream, pieces(spoken[i].samples, size)) for i in order]

    found = await asyncio.gather(*map(listen, range(neighbours)))
    for number, utterances in enumerate(found):
        assert utterances == [expected[(number + i) % len(spoken)] for i in range(2)]


async def test_words_appear_during_the_utterance(
    recognizer: LocalRecognizer, spoken: list[Clip]
) -> None:
    stream = await recognizer.open(MODEL)
    counts = [len(await stream.feed(piece)) for piece in pieces(spoken[0].samples, 1600)]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert counts[-1] <= len(await stream.finish())


async def test_every_utterance_of_a_stream_is_decoded_like_the_first(
    recognizer: LocalRecognizer, spoken: list[Clip], expected: list[Words]
) -> None:
    stream = await recognizer.open(MODEL)
    assert await stream.finish() == ()
    assert await stream.feed(NOTHING) == ()
    for _ in range(2):
        for clip, words in zip(spoken[:3], expected[:3], strict=True):
            assert await decode_utterance(stream, [clip.samples]) == words
            assert await stream.finish() == ()
    assert await decode_utterance(stream, [np.zeros(100, np.float32)]) == ()


async def test_streams_that_wait_at_the_same_time_are_decoded_together(
    folder: Path, spoken: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Watched(folder)
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=9)
    streams = [await recognizer.open(MODEL) for _ in range(4)]
    together: list[int] = []
    decode = engine._library.decode_streams

    def watched(ready: list[Any]) -> None:
        together.append(len(ready))
        decode(ready)

    monkeypatch.setattr(engine._library, "decode_streams", watched)
    calls = [asyncio.create_task(streams[0].feed(spoken[0].samples[:160]))]
    assert await asyncio.to_thread(engine.started.wait, WAIT_S)
    calls += [asyncio.create_task(s.feed(spoken[0].samples[:8000])) for s in streams[1:]]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(*calls)
    assert engine.sizes == [[160], [8000] * 3]
    assert set(together) == {3}


async def test_audio_without_a_chunk_waits_for_no_batch(folder: Path, spoken: list[Clip]) -> None:
    engine = Decoding(folder)
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=2)
    busy, other = [await recognizer.open(MODEL) for _ in range(2)]
    call = asyncio.create_task(busy.feed(spoken[0].samples[:8000]))
    await engine.another()
    assert await asyncio.wait_for(other.feed(spoken[0].samples[:160]), WAIT_S) == ()
    assert not call.done()
    engine.gate.set()
    await call


async def test_no_stream_waits_for_the_second_chunk_of_another(
    folder: Path, spoken: list[Clip]
) -> None:
    engine = Decoding(folder)
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=2)
    late, live = [await recognizer.open(MODEL) for _ in range(2)]
    calls = [asyncio.create_task(late.feed(spoken[0].samples[:SAMPLE_RATE]))]
    await engine.another()
    calls.append(asyncio.create_task(live.feed(spoken[0].samples[:6000])))
    await asyncio.sleep(0.05)  # it waits in line when the first batch ends
    engine.gate.set()
    await asyncio.gather(*calls)
    assert [len(batch) for batch in engine.batches[:2]] == [1, 2]


async def test_a_stream_that_is_behind_waits_for_one_tick(
    engine: StreamingEngine, spoken: list[Clip]
) -> None:
    recognizer = LocalRecognizer(lambda _: engine, tick_s=WAIT_S, max_streams=1)
    stream = await recognizer.open(MODEL)
    second = spoken[0].samples[:SAMPLE_RATE]  # six chunks
    await asyncio.wait_for(stream.feed(second), WAIT_S / 2)


async def test_each_thread_decodes_a_batch_of_its_own(
    folder: Path, spoken: list[Clip], expected: list[Words]
) -> None:
    engine = Decoding(folder)
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=40, threads=2)
    streams = [await recognizer.open(MODEL) for _ in range(40)]
    calls = [asyncio.create_task(decode_utterance(s, [spoken[0].samples])) for s in streams]
    await engine.another()
    await engine.another()
    at_once = [set(batch) for batch in engine.batches]
    assert len(at_once) == 2
    assert not at_once[0] & at_once[1]
    assert max(map(len, at_once)) <= 32
    engine.gate.set()
    assert await asyncio.gather(*calls) == [expected[0]] * 40


async def test_a_stream_that_catches_up_lets_the_others_in_between(
    folder: Path, spoken: list[Clip]
) -> None:
    engine = Watched(folder)
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=2)
    late, live = [await recognizer.open(MODEL) for _ in range(2)]
    backlog = asyncio.create_task(late.feed(np.resize(spoken[0].samples, 9 * SAMPLE_RATE)))
    assert await asyncio.to_thread(engine.started.wait, WAIT_S)
    meanwhile = asyncio.create_task(live.feed(spoken[0].samples[:160]))
    await asyncio.sleep(0)
    engine.gate.set()
    await meanwhile
    assert not backlog.done()
    await backlog
    assert max(size for sizes in engine.sizes for size in sizes) <= SAMPLE_RATE


async def test_closed_streams_make_room_for_others(
    engine: StreamingEngine, spoken: list[Clip], expected: list[Words]
) -> None:
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=2)
    first, second = [await recognizer.open(MODEL) for _ in range(2)]
    assert recognizer.streams == 2
    with pytest.raises(Overloaded):
        await recognizer.open(MODEL)
    await first.feed(spoken[0].samples)
    await first.close()
    await first.close()
    assert recognizer.streams == 1
    for call in (first.feed(spoken[0].samples), first.finish()):
        with pytest.raises(Cancelled):
            await call
    third = await recognizer.open(MODEL)
    assert await decode_utterance(third, [spoken[0].samples]) == expected[0]
    for stream in (second, third):
        await stream.close()
    assert recognizer.streams == 0


async def test_a_closed_stream_leaves_nothing_of_its_utterance(
    recognizer: LocalRecognizer, spoken: list[Clip]
) -> None:
    before = open_utterances()
    closed, other = [await recognizer.open(MODEL) for _ in range(2)]
    await closed.feed(spoken[0].samples)
    assert open_utterances() == before + 1
    await closed.close()
    await other.feed(spoken[0].samples)  # the thread now holds this stream instead
    assert open_utterances() == before + 1


def open_utterances() -> int:
    gc.collect()  # what other tests left may not go while this one counts
    states = [o for o in gc.get_objects() if isinstance(o, StreamState)]
    return sum(state.library is not None for state in states)


async def test_the_lag_is_the_longest_wait_of_a_stream(folder: Path, spoken: list[Clip]) -> None:
    engine = Watched(folder)
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=1)
    stream = await recognizer.open(MODEL)
    assert recognizer.lag_s() == 0.0
    call = asyncio.create_task(stream.feed(spoken[0].samples))
    await asyncio.sleep(0.2)
    assert recognizer.lag_s() > 0.1, "while it still waits"
    engine.gate.set()
    await call
    assert recognizer.lag_s() > 0.1, "since it was last asked"
    assert recognizer.lag_s() == 0.0


@pytest.mark.parametrize("running", [True, False])
async def test_a_cancelled_feed_closes_its_stream_and_leaves_the_others(
    folder: Path, spoken: list[Clip], expected: list[Words], running: bool
) -> None:
    engine = Watched(folder)
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=3)
    streams = [await recognizer.open(MODEL) for _ in range(3)]
    calls = [asyncio.create_task(streams[0].feed(spoken[0].samples))]
    assert await asyncio.to_thread(engine.started.wait, WAIT_S)
    calls += [asyncio.create_task(decode_utterance(s, [spoken[1].samples])) for s in streams[1:]]
    await asyncio.sleep(0)
    cancelled = 0 if running else 1
    calls[cancelled].cancel()
    await asyncio.wait([calls[cancelled]], timeout=WAIT_S)
    assert calls[cancelled].cancelled()
    assert recognizer.streams == 2
    engine.gate.set()
    assert await calls[2] == expected[1]
    with pytest.raises(Cancelled):
        await streams[cancelled].feed(spoken[0].samples)
    if not running:
        await calls[0]
        assert await streams[0].finish() == expected[0]


async def test_a_model_is_loaded_once_and_when_it_is_first_needed(
    engine: StreamingEngine, spoken: list[Clip], expected: list[Words]
) -> None:
    loaded = []

    def load_slowly(model: str) -> StreamingEngine:
        loaded.append(model)
        assert gate.wait(WAIT_S)
        return engine

    gate = threading.Event()
    recognizer = LocalRecognizer(load_slowly, tick_s=0.0, max_streams=9)
    assert loaded == []
    opening = [asyncio.create_task(recognizer.open(m)) for m in ("a", "a", "a", "b")]
    await asyncio.sleep(0.01)
    opening[0].cancel()  # the one that caused the load goes away
    gate.set()
    streams = await asyncio.gather(*opening[1:])
    assert sorted(loaded) == ["a", "b"]
    assert recognizer.streams == 3
    assert await decode_utterance(streams[0], [spoken[0].samples]) == expected[0]


async def test_a_load_that_fails_is_tried_again(engine: StreamingEngine) -> None:
    attempts = count()

    def load_at_last(_: str) -> StreamingEngine:
        if next(attempts) == 0:
            raise ModelUnavailable("not here yet")
        return engine

    recognizer = LocalRecognizer(load_at_last, tick_s=0.0, max_streams=2)
    outcomes = await asyncio.gather(
        *(recognizer.open(MODEL) for _ in range(2)), return_exceptions=True
    )
    assert all(isinstance(outcome, ModelUnavailable) for outcome in outcomes)
    assert recognizer.streams == 0
    stream = await recognizer.open(MODEL)
    assert await stream.finish() == ()


async def test_hotwords_steer_every_utterance_of_their_stream_alone(
    tmp_path: Path, spoken: list[Clip]
) -> None:
    engine = toy(tmp_path, decoding_method="modified_beam_search")
    recognizer = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=2)
    plain = await recognizer.open(MODEL)
    steered = await recognizer.open(MODEL, "нет :x; #, no such")
    assert steered.takes_hotwords
    unsteered = alone(engine, spoken[0].samples)

    async def listen(stream: LocalStream) -> list[Words]:
        found = []
        for _ in range(2):
            await stream.feed(spoken[0].samples)
            found.append(await stream.finish())
        return found

    found = await asyncio.gather(listen(plain), listen(steered))
    assert found[0] == [unsteered] * 2
    assert found[1][0] == found[1][1] != unsteered


async def test_hotwords_are_ignored_where_the_model_takes_none(
    recognizer: LocalRecognizer, spoken: list[Clip], expected: list[Words]
) -> None:
    stream = await recognizer.open(MODEL, "Анна, Борис")
    assert not stream.takes_hotwords
    assert await decode_utterance(stream, [spoken[0].samples]) == expected[0]


async def test_too_many_hotwords_are_refused(recognizer: LocalRecognizer) -> None:
    with pytest.raises(InvalidRequest, match="hotwords"):
        await recognizer.open(MODEL, "a" * 5001)
    assert recognizer.streams == 0
