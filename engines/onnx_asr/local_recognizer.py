"""Streaming recognition in this process: loads models on demand, decodes streams in batches."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from engines.batching import MicroBatcher
from engines.onnx_asr.streaming import Step, StreamingEngine, StreamState
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, Overloaded
from speech.transcript import Word

_LONGEST_STEP = SAMPLE_RATE
"""Samples; a stream with a longer backlog is fed in such pieces, between those of others."""
_MAX_BATCH = 32
"""Streams of one batch: a larger one costs no less for each of them, and returns later."""
_NO_SAMPLES: Samples = np.zeros(0, np.float32)


class LocalRecognizer:
    """:class:`speech.ports.StreamingRecognizer` in this process; for one event loop."""

    def __init__(
        self,
        load: Callable[[str], StreamingEngine],
        *,
        tick_s: float,
        max_streams: int,
        threads: int = 1,
    ) -> None:
        """``load`` is called in a thread, once per model id, when its first stream opens.

        Each model decodes in ``threads`` threads, a batch in each; ``tick_s`` is the shortest time
        between two batches. :meth:`open` takes ids, no aliases.
        """
        self._load = load
        self._tick_s = tick_s
        self._max_streams = max_streams
        self._threads = threads
        self._models: dict[str, asyncio.Task[_Model]] = {}
        self._streams = 0
        self._lag = _Lag()

    def lag_s(self) -> float:
        """The longest wait of a step for its result since the last query, in seconds."""
        return self._lag.longest_s()

    @property
    def streams(self) -> int:
        """Number of streams that are open or opening."""
        return self._streams

    async def open(self, model: str, hotwords: str | None = None) -> "LocalStream":
        """A new stream. Raises Overloaded beyond ``max_streams``, and what ``load`` raises."""
        if self._streams >= self._max_streams:
            raise Overloaded(f"{self._streams} streams are open already")
        self._streams += 1
        try:
            loaded = await self._model(model)
            return LocalStream(loaded, loaded.engine.open(hotwords), self._lag, self._release)
        except BaseException:
            self._release()
            raise

    async def _model(self, name: str) -> "_Model":
        task = self._models.get(name)
        if task is None:
            task = self._models[name] = asyncio.create_task(self._loaded(name))
        # Shielded: a stream that is cancelled must not cancel the load for the others.
        return await asyncio.shield(task)

    async def _loaded(self, name: str) -> "_Model":
        try:
            engine = await asyncio.to_thread(self._load, name)
        except BaseException:
            self._models.pop(name, None)  # the next stream loads again
            raise
        return _Model(engine, self._max_streams, self._tick_s, self._threads)

    def _release(self) -> None:
        self._streams -= 1


class _Lag:
    """The longest duration of a step since the last query, unfinished steps included."""

    def __init__(self) -> None:
        self._since: dict[object, float] = {}
        self._longest_s = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        step = object()
        self._since[step] = time.monotonic()
        try:
            yield
        finally:
            self._longest_s = max(self._longest_s, time.monotonic() - self._since.pop(step))

    def longest_s(self) -> float:
        waiting = [time.monotonic() - since for since in self._since.values()]
        longest_s, self._longest_s = max([self._longest_s, *waiting]), 0.0
        return longest_s


class _Model:
    """A loaded model: one thread that takes audio, and those that decode."""

    def __init__(
        self, engine: StreamingEngine, max_streams: int, tick_s: float, threads: int
    ) -> None:
        self.engine = engine
        # A stream has one call under way, so that no more can wait.
        self._fed: MicroBatcher[Step, tuple[Word, ...] | None] = MicroBatcher(
            engine.feed, max_batch=max_streams, max_waiting=max_streams
        )
        self._decoded: MicroBatcher[StreamState, tuple[Word, ...] | None] = MicroBatcher(
            engine.decode,
            max_batch=_MAX_BATCH,
            max_waiting=max_streams,
            tick_s=tick_s,
            threads=threads,
        )

    async def step(self, step: Step) -> tuple[Word, ...]:
        """Feed a stream, and decode its chunks one by one, with those of others.

        Only the first waits for a tick: a stream with more than one chunk is behind.
        """
        words = await self._fed.submit(step)
        behind = False
        while words is None:
            words = await self._decoded.submit(step.stream, at_once=behind)
            behind = True
        return words


class LocalStream:
    """:class:`speech.ports.RecognizerStream` of a :class:`LocalRecognizer`.

    A ``feed`` or ``finish`` that is cancelled closes the stream, as it is unknown how much of the
    audio was decoded; one that raises EngineFailed has lost the utterance, and the next ``feed``
    begins another. A closed stream raises Cancelled.
    """

    def __init__(
        self, model: _Model, state: StreamState, lag: _Lag, release: Callable[[], None]
    ) -> None:
        self._model = model
        self._lag = lag
        self._state: StreamState | None = state
        self._release = release

    @property
    def takes_hotwords(self) -> bool:
        """Whether hotwords have an effect on the model of this stream."""
        return self._model.engine.takes_hotwords

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        """See the port. Raises EngineFailed, Cancelled."""
        words = await self._step(samples[:_LONGEST_STEP])
        for first in range(_LONGEST_STEP, len(samples), _LONGEST_STEP):
            words = await self._step(samples[first : first + _LONGEST_STEP])
        return words

    async def finish(self, trailing_silence_s: float = 0.0) -> tuple[Word, ...]:
        """See the port. Raises EngineFailed, Cancelled."""
        trailing_silence = round(trailing_silence_s * SAMPLE_RATE)
        return await self._step(_NO_SAMPLES, finish=True, trailing_silence=trailing_silence)

    async def close(self) -> None:
        """See the port; may be called again."""
        if self._state is not None:
            self._state = None
            self._release()

    async def _step(
        self, samples: Samples, *, finish: bool = False, trailing_silence: int = 0
    ) -> tuple[Word, ...]:
        if self._state is None:
            raise Cancelled("the stream is closed")
        step = Step(self._state, samples, finish, trailing_silence)
        try:
            with self._lag.measured():
                return await self._model.step(step)
        except asyncio.CancelledError:
            await self.close()
            raise
