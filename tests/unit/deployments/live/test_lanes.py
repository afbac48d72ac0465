"""Lanes over real sockets: many streams on few messages, and what happens when a replica dies.

The fake recogniser makes one word of each sample, its value; so the words show exactly which audio
arrived, in which order, and in which utterance.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from configs.catalogue import Catalogue
from deployments.live.lane_client import LaneRecognizer
from deployments.live.lane_protocol import LaneAddress, bearer
from deployments.live.lane_server import LaneServer
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    SpeechError,
)
from speech.ports import RecognizerStream, StreamingRecognizer
from speech.transcript import Word
from tests.unit.heldout import clips

POISON = 666.0
DEADLY = 667.0
RECOVER_S = 5.0


def audio(*values: float) -> Samples:
    return np.array(values, np.float32)


def word_values(words: tuple[Word, ...]) -> list[float]:
    return [float(word.text) for word in words]


class EchoRecognizer:
    """A recogniser whose words are the samples; POISON fails it, DEADLY cuts its replica off."""

    def __init__(self, capacity: int = 100) -> None:
        self.capacity = capacity
        self.open_streams = 0
        self.opened: list[tuple[str, str | None]] = []
        self.fed = 0
        self.trailing_silence_s: list[float] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.die: Callable[[], Awaitable[None]] | None = None

    async def open(self, model: str, hotwords: str | None = None) -> RecognizerStream:
        if model == "missing":
            raise ModelNotFound("no such model")
        if self.open_streams >= self.capacity:
            raise Overloaded("full", 7.0)
        self.open_streams += 1
        self.opened.append((model, hotwords))
        return EchoStream(self)


class EchoStream:
    def __init__(self, engine: EchoRecognizer) -> None:
        self.engine = engine
        self.values: list[float] = []

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        self.engine.fed += 1
        if DEADLY in samples and self.engine.die is not None:
            await self.engine.die()
        await self.engine.answers.wait()
        if POISON in samples:
            raise EngineFailed("poisoned")
        self.values += samples.tolist()
        return self._words()

    async def finish(self, trailing_silence_s: float = 0.0) -> tuple[Word, ...]:
        self.engine.trailing_silence_s.append(trailing_silence_s)
        words, self.values = self._words(), []
        return words

    async def close(self) -> None:
        self.engine.open_streams -= 1

    def _words(self) -> tuple[Word, ...]:
        return tuple(Word(str(v), i, i + 1, 0.5) for i, v in enumerate(self.values))


class Replica:
    """A lane server behind a relay that counts messages and can die without closing."""

    def __init__(self, name: str, recognizer: StreamingRecognizer, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.server = LaneServer(recognizer, "127.0.0.1")
        self.messages = 0
        self.drops_messages = False
        self._sockets: list[Connection] = []

    async def __aenter__(self) -> "Replica":
        await self.server.start()
        self._relay = await serve(self._forward, "127.0.0.1", 0, max_size=None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        await self.server.close()

    async def kill(self) -> None:
        """As by SIGKILL: the sockets are aborted at once, and nobody listens any more."""
        self._relay.close(close_connections=False)
        for socket in self._sockets:
            socket.transport.abort()
        await eventually(lambda: self.server.streams == 0)

    @property
    def address(self) -> LaneAddress:
        port = self._relay.sockets[0].getsockname()[1] if self._relay.sockets else 1
        server = self.server
        return LaneAddress(
            self.name, server.host, port, server.token, server.streams, self.capacity
        )

    async def _forward(self, outside: ServerConnection) -> None:
        assert outside.request is not None
        url = f"ws://127.0.0.1:{self.server.port}"
        headers = {"Authorization": outside.request.headers["Authorization"]}
        try:
            async with connect(url, additional_headers=headers, max_size=None) as inside:
                self._sockets += [outside, inside]
                await asyncio.gather(self._pump(outside, inside), self._pump(inside, outside))
        except ConnectionClosed:
            pass

    async def _pump(self, source: Connection, target: Connection) -> None:
        async for message in source:
            self.messages += 1
            if not self.drops_messages:
                await target.send(message)


class Replicas:
    """The replicas that a directory shows, and a recogniser on their lanes."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.shown: list[Replica] = []
        self.queries = 0
        self._stack = stack

    async def add(self, recognizer: StreamingRecognizer, capacity: int = 100) -> Replica:
        replica = Replica(f"r{len(self.shown)}", recognizer, capacity)
        await self._stack.enter_async_context(replica)
        if isinstance(recognizer, EchoRecognizer):
            recognizer.die = replica.kill
        self.shown.append(replica)
        return replica

    async def engines(self, count: int) -> list[EchoRecognizer]:
        found = [EchoRecognizer() for _ in range(count)]
        for engine in found:
            await self.add(engine)
        return found

    async def directory(self) -> list[LaneAddress]:
        self.queries += 1
        return [replica.address for replica in self.shown]

    def recognizer(
        self, recover_s: float = RECOVER_S, max_utterance_s: float = 20.0, tick_s: float = 0.01
    ) -> LaneRecognizer:
        recognizer = LaneRecognizer(
            self.directory, tick_s=tick_s, recover_s=recover_s, max_utterance_s=max_utterance_s
        )
        self._stack.push_async_callback(recognizer.close)
        return recognizer


@pytest.fixture
async def replicas() -> AsyncIterator[Replicas]:
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        yield Replicas(stack)
    await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the condition was never met")


async def test_a_stream_returns_its_words_utterance_by_utterance(replicas: Replicas) -> None:
    [engine] = await replicas.engines(1)
    stream = await replicas.recognizer().open("m", "hot, words")
    assert engine.opened == [("m", "hot, words")]
    assert await stream.feed(audio(1)) == (Word("1.0", 0, 1, 0.5),)
    assert word_values(await stream.feed(audio(2, 0.1))) == [1, 2, np.float32(0.1)]
    assert len(await stream.finish(0.75)) == 3
    assert engine.trailing_silence_s == [0.75]
    assert await stream.finish() == ()
    assert word_values(await stream.feed(audio(4))) == [4]
    await stream.close()
    await eventually(lambda: engine.open_streams == 0)


async def test_many_streams_share_the_messages_of_a_lane(replicas: Replicas) -> None:
    await replicas.engines(1)
    recognizer = replicas.recognizer(tick_s=0.05)
    streams = await asyncio.gather(*(recognizer.open("m") for _ in range(50)))
    opened = replicas.shown[0].messages
    for value in range(10):
        answers = await asyncio.gather(*(s.feed(audio(n + value)) for n, s in enumerate(streams)))
        assert [word_values(a)[-1] for a in answers] == [n + value for n in range(50)]
    assert replicas.queries == 1
    assert opened <= 4
    assert replicas.shown[0].messages - opened <= 40, "of 500 calls and as many answers"


async def test_a_killed_replica_costs_no_word(replicas: Replicas) -> None:
    first, second = await replicas.engines(2)
    recognizer = replicas.recognizer()
    streams = await asyncio.gather(*(recognizer.open("m") for _ in range(20)))
    assert (first.open_streams, second.open_streams) == (10, 10)

    async def live(number: int, stream: RecognizerStream) -> None:
        for utterance in range(3):
            fed = [100 * utterance + number + i / 8 for i in range(8)]
            for count, value in enumerate(fed, 1):
                if (number, utterance, count) == (5, 1, 4):
                    await replicas.shown[0].kill()
                assert word_values(await stream.feed(audio(value))) == fed[:count]
            assert word_values(await stream.finish()) == fed

    await asyncio.gather(*(live(n, s) for n, s in enumerate(streams)))
    assert (first.open_streams, second.open_streams) == (0, 20)


async def test_a_replica_that_is_stopped_costs_no_word(replicas: Replicas) -> None:
    await replicas.engines(2)
    recognizer = replicas.recognizer()
    streams = await asyncio.gather(*(recognizer.open("m") for _ in range(4)))
    await asyncio.gather(*(s.feed(audio(1, 2)) for s in streams))
    await replicas.shown.pop(0).server.close()
    for stream in streams:
        assert word_values(await stream.finish()) == [1, 2]


async def test_a_replica_killed_under_a_call_is_replaced_by_one_that_comes_later(
    replicas: Replicas,
) -> None:
    [engine] = await replicas.engines(1)
    stream = await replicas.recognizer().open("m")
    await stream.feed(audio(1))
    engine.answers.clear()
    call = asyncio.create_task(stream.feed(audio(2)))
    await eventually(lambda: engine.fed == 2)
    await replicas.shown.pop().kill()
    await asyncio.sleep(0.1)
    assert not call.done()
    await replicas.engines(1)
    assert word_values(await call) == [1, 2]


async def test_a_stream_fails_when_no_replica_comes_back_in_time(replicas: Replicas) -> None:
    await replicas.engines(1)
    stream = await replicas.recognizer(recover_s=0.5).open("m")
    await stream.feed(audio(1))
    await replicas.shown.pop().kill()
    with pytest.raises(ModelUnavailable):
        await stream.feed(audio(2))
    await replicas.engines(1)
    assert word_values(await stream.finish()) == [1, 2], "the whole utterance was kept"


async def test_a_replica_that_does_not_answer_ends_in_an_error(replicas: Replicas) -> None:
    await replicas.engines(1)
    stream = await replicas.recognizer(recover_s=0.5).open("m")
    replicas.shown[0].drops_messages = True
    with pytest.raises(DeadlineExceeded):
        await stream.feed(audio(1))


async def test_a_directory_that_fails_leaves_the_last_one_in_use(replicas: Replicas) -> None:
    await replicas.engines(2)

    async def directory() -> list[LaneAddress]:
        if replicas.queries:
            raise RuntimeError("nobody answers")
        return await replicas.directory()

    recognizer = LaneRecognizer(directory, tick_s=0.01, recover_s=RECOVER_S, max_utterance_s=20)
    stream = await recognizer.open("m")
    await stream.feed(audio(1))
    await replicas.shown[0].kill()
    assert word_values(await stream.feed(audio(2))) == [1, 2]
    await recognizer.close()


async def test_the_server_frees_the_streams_of_a_client_that_vanished(replicas: Replicas) -> None:
    [engine] = await replicas.engines(1)
    recognizer = replicas.recognizer()
    streams = [await recognizer.open("m") for _ in range(5)]
    engine.answers.clear()
    calls = [asyncio.create_task(stream.feed(audio(1))) for stream in streams[:3]]
    await eventually(lambda: engine.fed == 3)
    assert engine.open_streams == replicas.shown[0].server.streams == 5
    for call in calls:
        call.cancel()
    await recognizer.close()
    await eventually(lambda: engine.open_streams == replicas.shown[0].server.streams == 0)


@pytest.mark.parametrize("header", [None, bearer("a guess"), bearer("ключ")])
async def test_a_lane_without_the_token_is_refused(replicas: Replicas, header: str | None) -> None:
    await replicas.engines(1)
    reader, writer = await asyncio.open_connection("127.0.0.1", replicas.shown[0].server.port)
    lines = [
        "GET / HTTP/1.1",
        "Host: lane",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *([f"Authorization: {header}"] if header else []),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    assert b" 401 " in await reader.readline()
    writer.close()


async def test_a_client_with_the_wrong_token_opens_no_stream(replicas: Replicas) -> None:
    [engine] = await replicas.engines(1)

    async def directory() -> list[LaneAddress]:
        return [replace(a, token="a guess") for a in await replicas.directory()]

    recognizer = LaneRecognizer(directory, tick_s=0.01, recover_s=0.5, max_utterance_s=20)
    with pytest.raises(ModelUnavailable):
        await recognizer.open("m")
    assert engine.opened == []
    await recognizer.close()


async def test_the_audio_that_is_kept_is_bounded(replicas: Replicas) -> None:
    await replicas.engines(1)
    stream = await replicas.recognizer(max_utterance_s=1.0).open("m")
    second = np.zeros(SAMPLE_RATE, np.float32)
    await stream.feed(second)
    with pytest.raises(InvalidRequest):
        await stream.feed(second[:1])
    assert len(await stream.finish()) == SAMPLE_RATE
    assert len(await stream.feed(second)) == SAMPLE_RATE, "each utterance has the whole bound"
    with pytest.raises(ValueError, match="does not fit"):
        replicas.recognizer(max_utterance_s=3600)


async def test_an_error_of_the_engine_is_raised_once_and_ends_the_utterance(
    replicas: Replicas,
) -> None:
    [engine] = await replicas.engines(1)
    stream = await replicas.recognizer().open("m")
    await stream.feed(audio(1))
    with pytest.raises(EngineFailed, match="poisoned"):
        await stream.feed(audio(POISON))
    assert word_values(await stream.feed(audio(2))) == [2]
    assert engine.fed == 3
    await eventually(lambda: engine.open_streams == 1)


async def test_audio_that_kills_its_replicas_is_not_replayed_for_ever(replicas: Replicas) -> None:
    engines = await replicas.engines(5)
    stream = await replicas.recognizer().open("m")
    with pytest.raises(EngineFailed, match="died"):
        await stream.feed(audio(DEADLY))
    assert word_values(await stream.feed(audio(1))) == [1]
    assert sum(engine.fed for engine in engines) == 4


async def test_a_cancelled_feed_leaves_the_stream_replayable(replicas: Replicas) -> None:
    [engine] = await replicas.engines(1)
    stream = await replicas.recognizer().open("m")
    await stream.feed(audio(1))
    engine.answers.clear()
    call = asyncio.create_task(stream.feed(audio(2)))
    await eventually(lambda: engine.fed == 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await eventually(lambda: engine.open_streams == 0)
    engine.answers.set()
    assert word_values(await stream.feed(audio(3))) == [1, 2, 3]
    assert word_values(await stream.finish()) == [1, 2, 3]


async def test_a_cancelled_wait_for_a_replica_leaves_the_stream_replayable(
    replicas: Replicas,
) -> None:
    await replicas.engines(1)
    stream = await replicas.recognizer().open("m")
    await stream.feed(audio(1))
    await replicas.shown.pop().kill()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await stream.feed(audio(2))
    await replicas.engines(1)
    assert word_values(await stream.finish()) == [1, 2]


async def test_streams_spread_evenly_and_stop_at_the_capacity(replicas: Replicas) -> None:
    engines = [EchoRecognizer(capacity=3), EchoRecognizer(capacity=3)]
    for engine in engines:
        await replicas.add(engine, capacity=3)
    recognizer = replicas.recognizer()
    streams = [await recognizer.open("m") for _ in range(6)]
    assert [engine.open_streams for engine in engines] == [3, 3]
    with pytest.raises(Overloaded):
        await recognizer.open("m")
    await streams[0].close()
    await eventually(lambda: sum(engine.open_streams for engine in engines) == 5)
    await recognizer.open("m")


async def test_a_refusal_keeps_its_message_and_retry_time(
    replicas: Replicas,
) -> None:
    """Another ingress may have filled the replica since the last refresh of the directory."""
    await replicas.add(EchoRecognizer(capacity=1))
    recognizer = replicas.recognizer()
    stream = await recognizer.open("m")
    with pytest.raises(Overloaded, match="full") as refusal:
        await recognizer.open("m")
    assert refusal.value.retry_after_s == 7.0
    assert word_values(await stream.feed(audio(1))) == [1]


@pytest.mark.parametrize(("model", "error"), [("missing", ModelNotFound)])
async def test_an_error_of_opening_keeps_its_class(
    replicas: Replicas, model: str, error: type[SpeechError]
) -> None:
    await replicas.engines(1)
    with pytest.raises(error):
        await replicas.recognizer().open(model)


async def test_without_replicas_a_stream_is_refused_at_once(replicas: Replicas) -> None:
    with pytest.raises(ModelUnavailable):
        await replicas.recognizer(recover_s=3600).open("m")


async def test_streams_move_to_a_new_replica_between_utterances(replicas: Replicas) -> None:
    await replicas.engines(1)
    recognizer = replicas.recognizer()
    streams = [await recognizer.open("m") for _ in range(12)]
    for stream in streams:
        await stream.feed(audio(1))
    await replicas.engines(1)
    while not replicas.shown[1].server.streams:
        for stream in streams:
            assert word_values(await stream.feed(audio(2)))[0] == 1, "never within an utterance"
            await stream.finish()
            await stream.feed(audio(1))
        await asyncio.sleep(0.1)
    await asyncio.gather(*(stream.finish() for stream in streams))
    for stream in streams:
        assert word_values(await stream.feed(audio(3))) == [3]
    await eventually(lambda: sum(r.server.streams for r in replicas.shown) == 12)
    assert min(r.server.streams for r in replicas.shown) >= 3


async def test_calls_after_close_are_cancelled_and_free_their_streams(replicas: Replicas) -> None:
    [engine] = await replicas.engines(1)
    recognizer = replicas.recognizer()
    stream = await recognizer.open("m")
    await recognizer.close()
    with pytest.raises(SpeechError):
        await stream.feed(audio(1))
    with pytest.raises(SpeechError):
        await recognizer.open("m")
    await eventually(lambda: engine.open_streams == 0)


async def test_real_words_are_the_same_after_a_replay(
    replicas: Replicas, repository: Path, demo_audio: Path
) -> None:
    pytest.importorskip("sherpa_onnx")
    from engines.onnx_asr.local_recognizer import LocalRecognizer
    from engines.onnx_asr.streaming import StreamingEngine

    entry = Catalogue.load().find("demo-vosk-streaming")
    assert entry is not None
    engine = StreamingEngine(entry, repository / str(entry.source.path), device="cpu")

    async def words_of(stream: RecognizerStream, samples: Samples) -> tuple[Word, ...]:
        chunk = SAMPLE_RATE // 10
        for first in range(0, len(samples), chunk):
            await stream.feed(samples[first : first + chunk])
            if first == 15 * chunk and len(replicas.shown) > 1:
                await replicas.shown.pop(0).kill()
        return await stream.finish()

    speech = [clip.samples for clip in clips(demo_audio, count=2)]
    local = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=100)
    alone = await local.open(entry.id)
    undisturbed = [await words_of(alone, samples) for samples in speech]
    assert all(len(words) > 2 for words in undisturbed)
    for _ in range(2):
        hosted = LocalRecognizer(lambda _: engine, tick_s=0.0, max_streams=100)
        await replicas.add(hosted)
    recognizer = replicas.recognizer()
    streams = [await recognizer.open(entry.id) for _ in speech]
    assert [r.server.streams for r in replicas.shown] == [2, 2]
    replayed = await asyncio.gather(
        *(words_of(stream, samples) for stream, samples in zip(streams, speech, strict=True))
    )
    assert [w.text for w in replayed[0]] == [w.text for w in undisturbed[0]]
    assert list(replayed) == undisturbed
