"""Frame-synchronous recognition of many live streams with sherpa-onnx.

A stream decodes one utterance after another; the caller decides where an utterance begins and ends.
Feeding and decoding are two calls: streams with enough audio for the next chunk of the model are
decoded in one batch, a chunk each, and the others need not wait for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.catalogue import ModelEntry
from engines.onnx_asr.hotwords import check_hotwords, hotword_phrases
from engines.onnx_asr.hypothesis import Hypothesis, words_of
from engines.onnx_asr.model_options import OnnxAsrOptions
from engines.onnx_asr.sherpa_models import FLUSH_SILENCE, load
from engines.out_of_memory import failure
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, InvalidRequest, OutOfMemory
from speech.transcript import Word


@dataclass(slots=True, eq=False)
class StreamState:
    """The state of a stream between two steps: its current utterance.

    ``library`` is the stream of sherpa-onnx, None until the utterance begins. Every utterance gets
    a new one, as the library's reset keeps the network state and the audio. ``finishing`` if no
    audio of the utterance follows; ``words`` are those of the chunks decoded before ``stale``.
    """

    hotwords: str | None
    library: Any = None
    samples: int = 0
    finishing: bool = False
    stale: bool = False
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The next samples of a stream's utterance, float32 at 16 kHz; ``finish`` if they are its last.

    ``trailing_silence`` is the number of samples without speech at the end of the utterance.
    """

    stream: StreamState
    samples: Samples
    finish: bool = False
    trailing_silence: int = 0


Outcome = tuple[Word, ...] | EngineFailed | OutOfMemory | None
"""The words of an utterance so far, with times in seconds of it; None while the stream has a chunk
to decode."""


class StreamingEngine:
    """One loaded model. Any number of threads may use it, each on other streams."""

    def __init__(
        self,
        entry: ModelEntry,
        path: Path,
        *,
        device: str,
        compute_type: str = "auto",
        threads: int = 1,
    ) -> None:
        """Load the model of a catalogue entry, with the arguments of the offline engine.

        Raises ModelUnavailable, and InvalidRequest if the model is not frame-synchronous.
        """
        if not entry.streaming:
            raise InvalidRequest(f"model '{entry.id}' does not stream")
        self._model = entry.id
        recognizer = load(
            entry,
            OnnxAsrOptions.of(entry),
            path,
            device=device,
            compute_type=compute_type,
            threads=threads,
        )
        self._library = recognizer.library
        self.compute_type = recognizer.compute_type
        self.takes_hotwords = recognizer.takes_hotwords

    def warm_up(self) -> None:
        """Decode a second of silence. Raises EngineFailed, OutOfMemory."""
        second = np.zeros(SAMPLE_RATE, np.float32)
        (outcome,) = self.step([Step(self.open(), second, finish=True)])
        if isinstance(outcome, Exception):
            raise outcome

    def open(self, hotwords: str | None = None) -> StreamState:
        """The state of a new stream; freed with its last reference.

        ``hotwords`` are phrases separated by commas, semicolons or newlines; without effect unless
        :attr:`takes_hotwords`. Raises InvalidRequest.
        """
        check_hotwords(hotwords)
        return StreamState(hotword_phrases(hotwords) if self.takes_hotwords else None)

    def step(self, steps: Sequence[Step]) -> list[tuple[Word, ...] | EngineFailed | OutOfMemory]:
        """Feed streams, each once, and decode until none of them has a chunk.

        A step that fails discards its utterance, and the next step begins another.
        """
        outcomes = dict(zip((step.stream for step in steps), self.feed(steps), strict=True))
        while ready := [stream for stream, outcome in outcomes.items() if outcome is None]:
            outcomes |= zip(ready, self.decode(ready), strict=True)
        return [outcome for outcome in outcomes.values() if outcome is not None]

    def feed(self, steps: Sequence[Step]) -> list[Outcome]:
        """Take the audio of streams, each of which has no chunk to decode.

        A step that fails discards its utterance, and the next one begins another; it does not
        affect other streams.
        """
        return [self._fed(step) for step in steps]

    def decode(self, streams: Sequence[StreamState]) -> list[Outcome]:
        """Decode the next chunk of streams that have one, in one batch.

        When the library fails, the utterances of all of them are discarded.
        """
        try:
            self._library.decode_streams([stream.library for stream in streams])
        except Exception as error:
            # Each of them has lost a chunk of features and its network state by now.
            return [self._failed(stream, error) for stream in streams]
        for stream in streams:
            stream.stale = True
        return [self._outcome(stream) for stream in streams]

    def _fed(self, step: Step) -> Outcome:
        stream = step.stream
        if stream.library is None and not len(step.samples):
            return ()
        try:
            self._accept(step)
        except Exception as error:
            return self._failed(stream, error)
        return self._outcome(stream)

    def _accept(self, step: Step) -> None:
        stream = step.stream
        if stream.library is None:
            stream.library = self._library.create_stream(hotwords=stream.hotwords)
        stream.samples += len(step.samples)
        # The bindings convert sample by sample, which is faster from a list than from an array.
        stream.library.accept_waveform(SAMPLE_RATE, step.samples.tolist())
        if step.finish:
            # Silence at the end of the audio counts towards the silence that flushes the model.
            flush = FLUSH_SILENCE[step.trailing_silence :]
            stream.library.accept_waveform(SAMPLE_RATE, flush.tolist())
            stream.library.input_finished()
            stream.finishing = stream.stale = True

    def _outcome(self, stream: StreamState) -> Outcome:
        try:
            if self._library.is_ready(stream.library):
                return None
            if stream.stale:
                result = self._library.get_result_all(stream.library)
                hypothesis = Hypothesis(result.tokens, result.timestamps, result.ys_probs)
                stream.words = words_of(hypothesis, (0.0, stream.samples / SAMPLE_RATE))
                stream.stale = False
        except Exception as error:
            return self._failed(stream, error)
        words = stream.words
        if stream.finishing:
            _discard(stream)
        return words

    def _failed(self, stream: StreamState, error: Exception) -> EngineFailed | OutOfMemory:
        _discard(stream)
        return failure(f"model '{self._model}' failed", error)


def _discard(stream: StreamState) -> None:
    """The utterance is over; the next one begins in the initial state."""
    stream.library, stream.samples, stream.words = None, 0, ()
    stream.finishing = stream.stale = False
