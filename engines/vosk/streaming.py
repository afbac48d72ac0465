"""Frame-synchronous recognition of many live streams at once, through sherpa-onnx.

A stream hears one utterance after another; where an utterance begins and ends is decided outside.
The streams that have audio for another chunk of the model are decoded together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.catalogue import ModelEntry
from engines.vosk.hotwords import check_hotwords, hotword_phrases
from engines.vosk.hypothesis import Hypothesis, words_of
from engines.vosk.sherpa_models import FLUSH_SILENCE, VoskOptions, load
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, InvalidRequest
from speech.transcript import Word


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

    One that ends had no speech in its last ``trailing_silence`` samples.
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
        # The bindings take numbers one by one, faster from a list than from an array.
        stream.library.accept_waveform(SAMPLE_RATE, step.samples.tolist())
        if step.finish:
            # Silence at the end of the audio counts towards the silence that flushes the model.
            flush = FLUSH_SILENCE[step.trailing_silence :]
            stream.library.accept_waveform(SAMPLE_RATE, flush.tolist())
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
