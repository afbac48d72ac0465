"""Lanes over real sockets: many streams on few messages, and what happens when a replica is gone.

The recogniser hears one word in each sample, its value; so the words say exactly which audio
arrived, in which order, and in which utterance.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray.serve.config import AutoscalingConfig
from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from configs.catalogue import Catalogue
from configs.settings import LiveSettings, Scaling
from deployments.live.lane_client import LaneRecognizer
from deployments.live.lane_server import LaneAddress, LaneServer, bearer
from deployments.runtime.scaling import FollowJobs, FollowRequests, FollowStreams
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


def heard(words: tuple[Word, ...]) -> list[float]:
    return [float(word.text) for word in words]


class Ear:
    """A recogniser whose words are the samples; POISON fails it, DEADLY cuts its replica off."""

    def __init__(self, capacity: int = 100) -> None:
        self.capacity = capacity
        self.open_streams = 0
        self.opened: list[tuple[str, str | None]] = []
        self.fed = 0
        self.quiet_s: list[float] = []
        self.attention = asyncio.Event()
        self.attention.set()
        self.die: Callable[[], Awaitable[None]] | None = None

    async def open(self, model: str, hotwords: str | None = None) -> RecognizerStream:
        if model == "missing":
            raise ModelNotFound("no such model")
        if self.open_streams >= self.capacity:
            raise Overloaded("full", 7.0)
        self.open_streams += 1
        self.opened.append((model, hotwords))
        return EarStream(self)


class EarStream:
    def __init__(self, ear: Ear) -> None:
        self.ear = ear
        self.values: list[float] = []

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        self.ear.fed += 1
        if DEADLY in samples and self.ear.die is not None:
            await self.ear.die()
        await self.ear.attention.wait()
        if POISON in samples:
            raise EngineFailed("poisoned")
        self.values += samples.tolist()
        return self._words()

    async def finish(self, quiet_s: float = 0.0) -> tuple[Word, ...]:
        self.ear.quiet_s.append(quiet_s)
        words, self.values = self._words(), []
        return words

    async def close(self) -> None:
        self.ear.open_streams -= 1

    def _words(self) -> tuple[Word, ...]:
        return tuple(Word(str(v), i, i + 1, 0.5) for i, v in enumerate(self.values))


class Replica:
    """A lane server behind a relay that counts messages and dies without a good-bye."""

    def __init__(self, name: str, recognizer: StreamingRecognizer, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.server = LaneServer(recognizer, "127.0.0.1")
        self.messages = 0
        self.deaf = False
        self._sockets: list[Connection] = []

    async def __aenter__(self) -> "Replica":
        await self.server.start()
        self._relay = await serve(self._forward, "127.0.0.1", 0, max_size=None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        await self.server.close()

    async def kill(self) -> None:
        """As by SIGKILL: the sockets are gone at once, and nobody listens any more."""
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
            if not self.deaf:
                await target.send(message)


class Replicas:
    """The replicas that a directory shows, and a recogniser on their lanes."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.shown: list[Replica] = []
        self.asked = 0
        self._stack = stack

    async def add(self, recognizer: StreamingRecognizer, capacity: int = 100) -> Replica:
        replica = Replica(f"r{len(self.shown)}", recognizer, capacity)
        await self._stack.enter_async_context(replica)
        if isinstance(recognizer, Ear):
            recognizer.die = replica.kill
        self.shown.append(replica)
        return replica

    async def ears(self, count: int) -> list[Ear]:
        found = [Ear() for _ in range(count)]
        for ear in found:
            await self.add(ear)
        return found

    async def directory(self) -> list[LaneAddress]:
        self.asked += 1
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
    pytest.fail("it did not get there")


async def test_a_stream_gives_its_words_utterance_by_utterance(replicas: Replicas) -> None:
    [ear] = await replicas.ears(1)
    stream = await replicas.recognizer().open("m", "hot, words")
    assert ear.opened == [("m", "hot, words")]
    assert await stream.feed(audio(1)) == (Word("1.0", 0, 1, 0.5),)
    assert heard(await stream.feed(audio(2, 0.1))) == [1, 2, np.float32(0.1)]
    assert len(await stream.finish(0.75)) == 3
    assert ear.quiet_s == [0.75]
    assert await stream.finish() == ()
    assert heard(await stream.feed(audio(4))) == [4]
    await stream.close()
    await eventually(lambda: ear.open_streams == 0)


async def test_many_streams_share_the_messages_of_a_lane(replicas: Replicas) -> None:
    await replicas.ears(1)
    recognizer = replicas.recognizer(tick_s=0.05)
    streams = await asyncio.gather(*(recognizer.open("m") for _ in range(50)))
    opened = replicas.shown[0].messages
    for value in range(10):
        answers = await asyncio.gather(*(s.feed(audio(n + value)) for n, s in enumerate(streams)))
        assert [heard(a)[-1] for a in answers] == [n + value for n in range(50)]
    assert replicas.asked == 1
    assert opened <= 4
    assert replicas.shown[0].messages - opened <= 40, "of 500 calls and as many answers"


async def test_a_killed_replica_costs_no_word(replicas: Replicas) -> None:
    first, second = await replicas.ears(2)
    recognizer = replicas.recognizer()
    streams = await asyncio.gather(*(recognizer.open("m") for _ in range(20)))
    assert (first.open_streams, second.open_streams) == (10, 10)

    async def live(number: int, stream: RecognizerStream) -> None:
        for utterance in range(3):
            values = [100 * utterance + number + i / 8 for i in range(8)]
            for count, value in enumerate(values, 1):
                if (number, utterance, count) == (5, 1, 4):
                    await replicas.shown[0].kill()
                assert heard(await stream.feed(audio(value))) == values[:count]
            assert heard(await stream.finish()) == values

    await asyncio.gather(*(live(n, s) for n, s in enumerate(streams)))
    assert (first.open_streams, second.open_streams) == (0, 20)


async def test_a_replica_that_is_stopped_costs_no_word(replicas: Replicas) -> None:
    await replicas.ears(2)
    recognizer = replicas.recognizer()
    streams = await asyncio.gather(*(recognizer.open("m") for _ in range(4)))
    await asyncio.gather(*(s.feed(audio(1, 2)) for s in streams))
    await replicas.shown.pop(0).server.close()
    for stream in streams:
        assert heard(await stream.finish()) == [1, 2]


async def test_a_replica_killed_under_a_call_is_replaced_by_one_that_comes_later(
    replicas: Replicas,
) -> None:
    [ear] = await replicas.ears(1)
    stream = await replicas.recognizer().open("m")
    await stream.feed(audio(1))
    ear.attention.clear()
    call = asyncio.create_task(stream.feed(audio(2)))
    await eventually(lambda: ear.fed == 2)
    await replicas.shown.pop().kill()
    await asyncio.sleep(0.1)
    assert not call.done()
    await replicas.ears(1)
    assert heard(await call) == [1, 2]


async def test_a_stream_is_given_up_when_no_replica_comes_back(replicas: Replicas) -> None:
    await replicas.ears(1)
    stream = await replicas.recognizer(recover_s=0.5).open("m")
    await stream.feed(audio(1))
    await replicas.shown.pop().kill()
    with pytest.raises(ModelUnavailable):
        await stream.feed(audio(2))
    await replicas.ears(1)
    assert heard(await stream.finish()) == [1, 2], "nothing of it was forgotten"


async def test_a_replica_that_does_not_answer_ends_in_an_error(replicas: Replicas) -> None:
    await replicas.ears(1)
    stream = await replicas.recognizer(recover_s=0.5).open("m")
    replicas.shown[0].deaf = True
    with pytest.raises(DeadlineExceeded):
        await stream.feed(audio(1))


async def test_a_dumb_directory_leaves_what_was_known(replicas: Replicas) -> None:
    await replicas.ears(2)

    async def directory() -> list[LaneAddress]:
        if replicas.asked:
            raise RuntimeError("nobody answers")
        return await replicas.directory()

    recognizer = LaneRecognizer(directory, tick_s=0.01, recover_s=RECOVER_S, max_utterance_s=20)
    stream = await recognizer.open("m")
    await stream.feed(audio(1))
    await replicas.shown[0].kill()
    assert heard(await stream.feed(audio(2))) == [1, 2]
    await recognizer.close()


async def test_the_server_frees_the_streams_of_a_client_that_vanished(replicas: Replicas) -> None:
    [ear] = await replicas.ears(1)
    recognizer = replicas.recognizer()
    streams = [await recognizer.open("m") for _ in range(5)]
    ear.attention.clear()
    calls = [asyncio.create_task(stream.feed(audio(1))) for stream in streams[:3]]
    await eventually(lambda: ear.fed == 3)
    assert ear.open_streams == replicas.shown[0].server.streams == 5
    for call in calls:
        call.cancel()
    await recognizer.close()
    await eventually(lambda: ear.open_streams == replicas.shown[0].server.streams == 0)


@pytest.mark.parametrize("header", [None, bearer("a guess"), bearer("ключ")])
async def test_a_lane_without_the_token_is_refused(replicas: Replicas, header: str | None) -> None:
    await replicas.ears(1)
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


async def test_a_recogniser_with_the_wrong_token_gets_nothing(replicas: Replicas) -> None:
    [ear] = await replicas.ears(1)

    async def directory() -> list[LaneAddress]:
        return [replace(a, token="a guess") for a in await replicas.directory()]

    recognizer = LaneRecognizer(directory, tick_s=0.01, recover_s=0.5, max_utterance_s=20)
    with pytest.raises(ModelUnavailable):
        await recognizer.open("m")
    assert ear.opened == []
    await recognizer.close()


async def test_the_audio_that_is_kept_is_bounded(replicas: Replicas) -> None:
    await replicas.ears(1)
    stream = await replicas.recognizer(max_utterance_s=1.0).open("m")
    second = np.zeros(SAMPLE_RATE, np.float32)
    await stream.feed(second)
    with pytest.raises(InvalidRequest):
        await stream.feed(second[:1])
    assert len(await stream.finish()) == SAMPLE_RATE
    assert len(await stream.feed(second)) == SAMPLE_RATE, "each utterance has the whole bound"
    with pytest.raises(ValueError, match="does not fit"):
        replicas.recognizer(max_utterance_s=3600)


async def test_an_error_of_the_engine_arrives_once_and_ends_the_utterance(
    replicas: Replicas,
) -> None:
    [ear] = await replicas.ears(1)
    stream = await replicas.recognizer().open("m")
    await stream.feed(audio(1))
    with pytest.raises(EngineFailed, match="poisoned"):
        await stream.feed(audio(POISON))
    assert heard(await stream.feed(audio(2))) == [2]
    assert ear.fed == 3
    await eventually(lambda: ear.open_streams == 1)


async def test_audio_that_kills_its_replicas_is_not_replayed_for_ever(replicas: Replicas) -> None:
    ears = await replicas.ears(5)
    stream = await replicas.recognizer().open("m")
    with pytest.raises(EngineFailed, match="died"):
        await stream.feed(audio(DEADLY))
    assert heard(await stream.feed(audio(1))) == [1]
    assert sum(ear.fed for ear in ears) == 4


async def test_a_cancelled_feed_leaves_the_stream_replayable(replicas: Replicas) -> None:
    [ear] = await replicas.ears(1)
    stream = await replicas.recognizer().open("m")
    await stream.feed(audio(1))
    ear.attention.clear()
    call = asyncio.create_task(stream.feed(audio(2)))
    await eventually(lambda: ear.fed == 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await eventually(lambda: ear.open_streams == 0)
    ear.attention.set()
    assert heard(await stream.feed(audio(3))) == [1, 2, 3]
    assert heard(await stream.finish()) == [1, 2, 3]


async def test_a_cancelled_wait_for_a_replica_leaves_the_stream_replayable(
    replicas: Replicas,
) -> None:
    await replicas.ears(1)
    stream = await replicas.recognizer().open("m")
    await stream.feed(audio(1))
    await replicas.shown.pop().kill()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await stream.feed(audio(2))
    await replicas.ears(1)
    assert heard(await stream.finish()) == [1, 2]


async def test_streams_spread_evenly_and_stop_at_the_capacity(replicas: Replicas) -> None:
    ears = [Ear(capacity=3), Ear(capacity=3)]
    for ear in ears:
        await replicas.add(ear, capacity=3)
    recognizer = replicas.recognizer()
    streams = [await recognizer.open("m") for _ in range(6)]
    assert [ear.open_streams for ear in ears] == [3, 3]
    with pytest.raises(Overloaded):
        await recognizer.open("m")
    await streams[0].close()
    await eventually(lambda: sum(ear.open_streams for ear in ears) == 5)
    await recognizer.open("m")


async def test_a_refusal_of_the_replica_arrives_as_it_was_raised(replicas: Replicas) -> None:
    """Another ingress may have filled the replica since the directory was asked."""
    await replicas.add(Ear(capacity=1))
    recognizer = replicas.recognizer()
    stream = await recognizer.open("m")
    with pytest.raises(Overloaded, match="full") as refusal:
        await recognizer.open("m")
    assert refusal.value.retry_after_s == 7.0
    assert heard(await stream.feed(audio(1))) == [1]


@pytest.mark.parametrize(("model", "error"), [("missing", ModelNotFound)])
async def test_an_error_of_opening_keeps_its_class(
    replicas: Replicas, model: str, error: type[SpeechError]
) -> None:
    await replicas.ears(1)
    with pytest.raises(error):
        await replicas.recognizer().open(model)


async def test_without_replicas_a_stream_is_refused_at_once(replicas: Replicas) -> None:
    with pytest.raises(ModelUnavailable):
        await replicas.recognizer(recover_s=3600).open("m")


async def test_streams_move_to_a_new_replica_between_utterances(replicas: Replicas) -> None:
    await replicas.ears(1)
    recognizer = replicas.recognizer()
    streams = [await recognizer.open("m") for _ in range(12)]
    for stream in streams:
        await stream.feed(audio(1))
    await replicas.ears(1)
    while not replicas.shown[1].server.streams:
        for stream in streams:
            assert heard(await stream.feed(audio(2)))[0] == 1, "never within an utterance"
            await stream.finish()
            await stream.feed(audio(1))
        await asyncio.sleep(0.1)
    await asyncio.gather(*(stream.finish() for stream in streams))
    for stream in streams:
        assert heard(await stream.feed(audio(3))) == [3]
    await eventually(lambda: sum(r.server.streams for r in replicas.shown) == 12)
    assert min(r.server.streams for r in replicas.shown) >= 3


@pytest.mark.parametrize(
    ("streams", "lags_s", "wanted"),
    [
        ([], [], 2),
        ([0, 0], [0, 0], 0),
        ([10, 0], [0.1, 0], 1),
        ([10, 1], [0.1, 0.1], 2),
        ([10, 21], [0.1, 0.1], 4),
        ([4, 3], [0.1, 0.9], 3),
        ([20, 20], [0.9, 0.9], 4),
    ],
    ids=["unknown", "idle", "one", "two", "many", "one lags", "many and lag"],
)
def test_replicas_are_wanted_for_streams_and_for_lag(
    streams: list[float], lags_s: list[float], wanted: int
) -> None:
    stats = {"streams": dict(enumerate(streams)), "lag_s": dict(enumerate(lags_s))}
    context = SimpleNamespace(
        aggregated_metrics=stats if streams else {}, current_num_replicas=2, target_num_replicas=2
    )
    assert FollowStreams(target_streams=10)(context) == (wanted, {})


@pytest.mark.parametrize(
    ("requests", "lag_s", "wanted"), [(10, 0.1, 1), (10, 0.9, 3), (40, 0.1, 4), (40, 0.9, 4)]
)
def test_ingress_replicas_are_wanted_for_requests_and_for_lag(
    requests: int, lag_s: float, wanted: int
) -> None:
    context = SimpleNamespace(
        aggregated_metrics={"lag_s": {"a": 0.0, "b": lag_s}},
        current_num_replicas=2,
        target_num_replicas=2,
        total_num_requests=requests,
        config=AutoscalingConfig(target_ongoing_requests=10),
    )
    assert FollowRequests()(context) == (wanted, {})


@pytest.mark.parametrize(
    ("jobs", "wanted"), [([], 2), ([0, 0], 0), ([1], 1), ([7, 9], 3), ([12, 12], 3), ([13], 4)]
)
def test_replicas_are_wanted_for_every_job_that_waits_or_runs(
    jobs: list[float], wanted: int
) -> None:
    stats = {"jobs": dict(enumerate(jobs))}
    context = SimpleNamespace(aggregated_metrics=stats if jobs else {}, target_num_replicas=2)
    assert FollowJobs(concurrency=4)(context) == (wanted, {})


def test_live_replicas_cannot_scale_to_zero() -> None:
    """No stream could ever ask for the first one."""
    with pytest.raises(ValueError, match="min_replicas"):
        LiveSettings(default_model="m", placement="replicas", scaling=Scaling(min_replicas=0))


async def test_after_close_nothing_is_asked_any_more(replicas: Replicas) -> None:
    [ear] = await replicas.ears(1)
    recognizer = replicas.recognizer()
    stream = await recognizer.open("m")
    await recognizer.close()
    with pytest.raises(SpeechError):
        await stream.feed(audio(1))
    with pytest.raises(SpeechError):
        await recognizer.open("m")
    await eventually(lambda: ear.open_streams == 0)


async def test_real_words_are_the_same_after_a_replay(
    replicas: Replicas, repository: Path, demo_audio: Path
) -> None:
    pytest.importorskip("sherpa_onnx")
    from engines.vosk.streaming import LocalRecognizer, StreamingEngine

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
