"""Frame-synchronous recognition of many live streams with sherpa-onnx.

A stream decodes one utterance after another; the caller decides where an utterance begins and ends.
Streams with enough audio for the next chunk of the model are decoded in one batch.
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
    a new one, as the library's reset keeps the network state and the audio.
    """

    hotwords: str | None
    library: Any = None
    samples: int = 0
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
        """The words of each utterance so far, with times in seconds of the utterance.

        ``steps`` holds at most one step of a stream. A step that fails discards its utterance, and
        the next step begins another. It does not affect other streams, unless the library failed
        while decoding them in the same batch.
        """
        failed: dict[StreamState, Exception] = {}
        for step in steps:
            try:
                self._feed(step)
            except Exception as error:
                failed[step.stream] = error
        alive = [s.stream for s in steps if s.stream.library is not None and s.stream not in failed]
        decoded = self._decode(alive, failed)
        return [self._outcome(step, decoded, failed) for step in steps]

    def _feed(self, step: Step) -> None:
        stream = step.stream
        if stream.library is None:
            if not len(step.samples):
                return
            stream.library = self._library.create_stream(hotwords=stream.hotwords)
        stream.samples += len(step.samples)
        # The bindings convert sample by sample, which is faster from a list than from an array.
        stream.library.accept_waveform(SAMPLE_RATE, step.samples.tolist())
        if step.finish:
            # Silence at the end of the audio counts towards the silence that flushes the model.
            flush = FLUSH_SILENCE[step.trailing_silence :]
            stream.library.accept_waveform(SAMPLE_RATE, flush.tolist())
            stream.library.input_finished()

    def _decode(
        self, streams: Sequence[StreamState], failed: dict[StreamState, Exception]
    ) -> set[StreamState]:
        """Decode until no stream is ready; returns the streams that decoded a chunk or failed."""
        decoded: set[StreamState] = set()
        while ready := [s for s in streams if self._library.is_ready(s.library)]:
            decoded.update(ready)
            try:
                self._library.decode_streams([s.library for s in ready])
            except Exception as error:
                # Each of them has lost a chunk of features and its network state by now.
                failed |= dict.fromkeys(ready, error)
                break
        return decoded

    def _outcome(
        self, step: Step, decoded: set[StreamState], failed: dict[StreamState, Exception]
    ) -> tuple[Word, ...] | EngineFailed | OutOfMemory:
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
            return failure(f"model '{self._model}' failed", error)
        return words
