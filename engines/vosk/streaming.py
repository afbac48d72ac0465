"""Frame-synchronous recognition of many live streams at once, through sherpa-onnx.

A stream hears one utterance after another; where an utterance begins and ends is decided outside.
The streams that have audio for another chunk of the model are decoded together.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.catalogue import ModelEntry
from engines.batching import MicroBatcher
from engines.vosk.offline import TAIL, Hypothesis, check_hotwords, hotword_phrases, words_of
from engines.vosk.sherpa_models import VoskOptions, load
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, EngineFailed, InvalidRequest, Overloaded
from speech.transcript import Word

_LONGEST_STEP = SAMPLE_RATE
"""Samples; a stream that catches up takes turns with the others after each such piece."""
_NOTHING: Samples = np.zeros(0, np.float32)


@dataclass(slots=True, eq=False)
class StreamState:
    """What an engine knows of a stream between two steps: the utterance it is hearing.

    ``library`` is the stream of sherpa-onnx, None until the utterance begins: its own reset keeps
    the states of the network and the audio, so that every utterance gets a new one.
    """

    hotwords: str | None
    library: Any = None
    samples: int = 0
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """More of the utterance of a stream, float32 at 16 kHz, and whether it ends with it.

    One that ends had no speech in its last ``quiet`` samples.
    """

    stream: StreamState
    samples: Samples
    finish: bool = False
    quiet: int = 0


class StreamingEngine:
    """One loaded model; :meth:`step` is for one thread at a time."""

    def __init__(
        self,
        entry: ModelEntry,
        path: Path,
        *,
        device: str,
        compute_type: str = "auto",
        threads: int = 1,
    ) -> None:
        """Load the model of a catalogue entry as :class:`engines.vosk.offline.VoskEngine` does.

        Raises ModelUnavailable, and InvalidRequest if the model is not frame-synchronous.
        """
        if not entry.streaming:
            raise InvalidRequest(f"model '{entry.id}' does not stream")
        self._model = entry.id
        recognizer = load(
            entry,
            VoskOptions.of(entry),
            path,
            device=device,
            compute_type=compute_type,
            threads=threads,
        )
        self._library = recognizer.library
        self.takes_hotwords = recognizer.takes_hotwords

    def open(self, hotwords: str | None = None) -> StreamState:
        """A stream that has heard nothing yet; costs nothing, and goes with its last reference.

        ``hotwords`` are phrases parted by commas, semicolons or lines; without effect unless
        :attr:`takes_hotwords`. Raises InvalidRequest.
        """
        check_hotwords(hotwords)
        return StreamState(hotword_phrases(hotwords) if self.takes_hotwords else None)

    def step(self, steps: Sequence[Step]) -> list[tuple[Word, ...] | EngineFailed]:
        """The words of each utterance so far, times in seconds of the utterance.

        A stream takes part with one step at most. One that fails forgets its utterance and begins
        another with its next step; the others do not notice, unless the library failed while it
        decoded them together.
        """
        failed: dict[StreamState, Exception] = {}
        for step in steps:
            try:
                self._hear(step)
            except Exception as error:
                failed[step.stream] = error
        alive = [s.stream for s in steps if s.stream.library is not None and s.stream not in failed]
        decoded = self._decode(alive, failed)
        return [self._outcome(step, decoded, failed) for step in steps]

    def _hear(self, step: Step) -> None:
        stream = step.stream
        if stream.library is None:
            if not len(step.samples):
                return
            stream.library = self._library.create_stream(hotwords=stream.hotwords)
        stream.samples += len(step.samples)
        # The bindings take numbers one by one, faster from a list than from an array.
        stream.library.accept_waveform(SAMPLE_RATE, step.samples.tolist())
        if step.finish:
            # Silence that was heard pushes the last words out as well as silence made up.
            stream.library.accept_waveform(SAMPLE_RATE, TAIL[step.quiet :].tolist())
            stream.library.input_finished()

    def _decode(
        self, streams: Sequence[StreamState], failed: dict[StreamState, Exception]
    ) -> set[StreamState]:
        """Decode all that is ready; the streams that got further, or failed."""
        decoded: set[StreamState] = set()
        while ready := [s for s in streams if self._library.is_ready(s.library)]:
            decoded.update(ready)
            try:
                self._library.decode_streams([s.library for s in ready])
            except Exception as error:
                # Each of them has lost a chunk of features and the states of the network by now.
                failed |= dict.fromkeys(ready, error)
                break
        return decoded

    def _outcome(
        self, step: Step, decoded: set[StreamState], failed: dict[StreamState, Exception]
    ) -> tuple[Word, ...] | EngineFailed:
        stream = step.stream
        error = failed.get(stream)
        if error is None and (stream in decoded or (step.finish and stream.library)):
            try:
                result = self._library.get_result_all(stream.library)
                hypothesis = Hypothesis(result.tokens, result.timestamps, result.ys_probs)
                stream.words = words_of(hypothesis, (0.0, stream.samples / SAMPLE_RATE))
            except Exception as problem:
                error = problem
        words = stream.words
        if step.finish or error is not None:
            stream.library, stream.samples, stream.words = None, 0, ()
        if error is not None:
            return EngineFailed(f"model '{self._model}' failed: {error}")
        return words


class LocalRecognizer:
    """:class:`speech.ports.StreamingRecognizer` in this process; for one event loop."""

    def __init__(
        self, load: Callable[[str], StreamingEngine], *, tick_s: float, max_streams: int
    ) -> None:
        """``load`` is called in a thread, once for each model id, when its first stream opens.

        ``tick_s`` is the shortest time between two steps of one model. Whoever knows aliases
        resolves them before :meth:`open`.
        """
        self._load = load
        self._tick_s = tick_s
        self._max_streams = max_streams
        self._models: dict[str, asyncio.Task[_Model]] = {}
        self._streams = 0
        self._lag = _Lag()
        self._closed = False

    def lag_s(self) -> float:
        """The longest that a stream waited for its words since this was last asked, in seconds."""
        return self._lag.longest_s()

    @property
    def streams(self) -> int:
        """How many streams are open, or opening."""
        return self._streams

    async def open(self, model: str, hotwords: str | None = None) -> "LocalStream":
        """A new stream. Raises Overloaded beyond ``max_streams``, and what ``load`` raises."""
        self._check_open()
        if self._streams >= self._max_streams:
            raise Overloaded(f"{self._streams} streams are open already")
        self._streams += 1
        try:
            loaded = await self._model(model)
            return LocalStream(loaded, loaded.engine.open(hotwords), self._lag, self._freed)
        except BaseException:
            self._freed()
            raise

    def close(self) -> None:
        """Let go of all models; what waits, and what is asked later, fails with Cancelled."""
        self._closed = True
        for task in self._models.values():
            if task.done():
                task.result().batcher.close()
        self._models.clear()

    async def _model(self, name: str) -> "_Model":
        task = self._models.get(name)
        if task is None:
            task = self._models[name] = asyncio.create_task(self._loaded(name))
        # Shielded: one of them that stops waiting must not end the load of the others.
        return await asyncio.shield(task)

    async def _loaded(self, name: str) -> "_Model":
        try:
            engine = await asyncio.to_thread(self._load, name)
            self._check_open()
        except BaseException:
            self._models.pop(name, None)  # the next stream tries again
            raise
        batch = self._max_streams
        return _Model(
            engine,
            MicroBatcher(engine.step, max_batch=batch, tick_s=self._tick_s, max_waiting=batch),
        )

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("the recogniser is closed")

    def _freed(self) -> None:
        self._streams -= 1


class _Lag:
    """How long steps take: the longest since last asked, those that are under way included."""

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


@dataclass(frozen=True, slots=True)
class _Model:
    engine: StreamingEngine
    batcher: MicroBatcher[Step, tuple[Word, ...]]


class LocalStream:
    """:class:`speech.ports.RecognizerStream` of a :class:`LocalRecognizer`.

    A ``feed`` or ``finish`` that is cancelled closes the stream, as nobody knows how much of the
    utterance was heard; one that raises EngineFailed has lost it, and the next ``feed`` begins
    another. A closed stream raises Cancelled.
    """

    def __init__(
        self, model: _Model, state: StreamState, lag: _Lag, freed: Callable[[], None]
    ) -> None:
        self._model = model
        self._lag = lag
        self._state: StreamState | None = state
        self._freed = freed

    @property
    def takes_hotwords(self) -> bool:
        """Whether the model of this stream can be steered by hotwords."""
        return self._model.engine.takes_hotwords

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        """See the port. Raises EngineFailed, Cancelled."""
        words = await self._step(samples[:_LONGEST_STEP])
        for first in range(_LONGEST_STEP, len(samples), _LONGEST_STEP):
            words = await self._step(samples[first : first + _LONGEST_STEP])
        return words

    async def finish(self, quiet_s: float = 0.0) -> tuple[Word, ...]:
        """See the port. Raises EngineFailed, Cancelled."""
        return await self._step(_NOTHING, finish=True, quiet=round(quiet_s * SAMPLE_RATE))

    async def close(self) -> None:
        """See the port; may be called again."""
        if self._state is not None:
            self._state = None
            self._freed()

    async def _step(
        self, samples: Samples, *, finish: bool = False, quiet: int = 0
    ) -> tuple[Word, ...]:
        if self._state is None:
            raise Cancelled("the stream is closed")
        try:
            with self._lag.measured():
                return await self._model.batcher.submit(Step(self._state, samples, finish, quiet))
        except asyncio.CancelledError:
            await self.close()
            raise
