"""Vosk and GigaAM models on sherpa-onnx: audio of any length, in utterances.

Voice activity detection cuts the audio into utterances of the length that the model can process; a
batch of them is decoded at once. sherpa-onnx 2.0 gives token probabilities for transducers only:
words of CTC models have ``probability`` None.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from configs.catalogue import ModelEntry
from engines.cancellation import CancelCheck, raise_if_cancelled
from engines.onnx_asr.hotwords import check_hotwords, hotword_phrases
from engines.onnx_asr.hypothesis import Hypothesis, words_of
from engines.onnx_asr.sherpa_models import FLUSH_SILENCE, OnnxAsrOptions, load
from engines.vad.silero_vad import SileroVad
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, InvalidRequest, SpeechError
from speech.media.segmentation import Region, speech_regions, utterances
from speech.ports import TranscribeOptions
from speech.transcript import Recognition, Segment

_HONOURED = {
    "model",
    "language",
    "task",
    "word_timestamps",
    "batch_size",
    "vad_filter",  # always on: silence is never decoded
}
_MAX_BATCH = 64
_SHORTEST = SAMPLE_RATE // 2
"""Samples; shorter utterances are padded with silence, the convolutions need some width."""


def ignored_options(options: TranscribeOptions, *, takes_hotwords: bool = False) -> tuple[str, ...]:
    """Names of the options that are not at their default and that this family ignores."""
    honoured = _HONOURED | ({"hotwords"} if takes_hotwords else set())
    default = TranscribeOptions()
    return tuple(
        option.name
        for option in fields(options)
        if option.name not in honoured
        and getattr(options, option.name) != getattr(default, option.name)
    )


class OnnxAsrEngine:
    """One loaded model; :meth:`transcribe` may run in several threads at once."""

    def __init__(
        self,
        entry: ModelEntry,
        path: Path,
        *,
        device: str,
        compute_type: str = "auto",
        threads: int = 1,
    ) -> None:
        """Load the model of a catalogue entry from ``path``; raises ModelUnavailable.

        ``device`` is "cpu" or "cuda" (which needs sherpa-onnx's CUDA build); ``compute_type`` is
        "int8" for the quantised files.
        """
        self._options = OnnxAsrOptions.of(entry)
        self._entry = entry
        self._recognizer = load(
            entry,
            self._options,
            path,
            device=device,
            compute_type=compute_type,
            threads=threads,
        )
        self._vad = SileroVad()

    @property
    def compute_type(self) -> str:
        """int8 for the quantised files, else float32."""
        return self._recognizer.compute_type

    def warm_up(self) -> None:
        """Decode a second of silence."""
        second = np.zeros(SAMPLE_RATE, np.float32)
        self._vad.probabilities(second)
        self._decode(second, [(0.0, 1.0)], TranscribeOptions(), lambda: False)

    def transcribe(
        self,
        samples: Samples,
        options: TranscribeOptions,
        cancelled: CancelCheck = lambda: False,
        report: Callable[[float], None] = lambda seconds_done: None,
        emit: Callable[[Segment], None] = lambda segment: None,
    ) -> Recognition:
        """Recognise float32 [samples] at 16 kHz; one segment per utterance with words.

        ``cancelled`` is polled before each batch, and each chunk of a frame-synchronous model;
        ``report`` receives the end of each batch in seconds, ``emit`` each segment. Raises
        InvalidRequest, Cancelled, EngineFailed.
        """
        self._check(options)
        languages = self._entry.languages
        language = languages[0] if len(languages) == 1 else None
        warnings = tuple(self._warnings(options))
        segments = []
        try:
            for segment in self._segments(samples, options, cancelled, report):
                segments.append(segment)
                emit(segment)
        except SpeechError:
            raise
        except Exception as error:
            raise EngineFailed(f"model '{self._entry.id}' failed: {error}") from error
        return Recognition(tuple(segments), language, warnings=warnings)

    def _check(self, options: TranscribeOptions) -> None:
        if options.task == "translate":
            raise InvalidRequest(f"model '{self._entry.id}' does not translate")
        supported = self._entry.languages
        if options.language is not None and supported and options.language not in supported:
            raise InvalidRequest(
                f"language '{options.language}' is not supported by model '{self._entry.id}', "
                f"which supports {', '.join(supported)}"
            )
        if not 1 <= options.batch_size <= _MAX_BATCH:
            raise InvalidRequest(f"batch_size must be between 1 and {_MAX_BATCH}")
        check_hotwords(options.hotwords)

    def _warnings(self, options: TranscribeOptions) -> Iterator[str]:
        ignored = ignored_options(options, takes_hotwords=self._recognizer.takes_hotwords)
        if ignored:
            yield f"model '{self._entry.id}' does not honour {', '.join(ignored)}"
        if options.language is not None and len(self._entry.languages) != 1:
            yield f"model '{self._entry.id}' detects the language by itself and ignores the hint"

    def _segments(
        self,
        samples: Samples,
        options: TranscribeOptions,
        cancelled: CancelCheck,
        report: Callable[[float], None],
    ) -> Iterator[Segment]:
        raise_if_cancelled(cancelled)
        probabilities = self._vad.probabilities(samples)
        regions = speech_regions(probabilities, len(samples) / SAMPLE_RATE)
        cuts = utterances(regions, probabilities, self._options.max_utterance_s)
        for first in range(0, len(cuts), options.batch_size):
            batch = cuts[first : first + options.batch_size]
            for utterance, hypothesis in zip(
                batch, self._decode(samples, batch, options, cancelled), strict=True
            ):
                words = words_of(hypothesis, utterance)
                if words:
                    yield Segment(
                        start=words[0].start,
                        end=words[-1].end,
                        text="".join(word.text for word in words),
                        words=words if options.word_timestamps else (),
                    )
            report(batch[-1][1])

    def _decode(
        self,
        samples: Samples,
        batch: Sequence[Region],
        options: TranscribeOptions,
        cancelled: CancelCheck,
    ) -> list[Hypothesis]:
        recognizer = self._recognizer.library
        hotwords = hotword_phrases(options.hotwords) if self._recognizer.takes_hotwords else None
        streams = []
        for start, end in batch:
            stream = recognizer.create_stream(hotwords=hotwords)
            utterance = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
            stream.accept_waveform(SAMPLE_RATE, _at_least(utterance, _SHORTEST))
            streams.append(stream)
        if not self._recognizer.streaming:
            raise_if_cancelled(cancelled)
            recognizer.decode_streams(streams)
            return [
                Hypothesis(s.result.tokens, s.result.timestamps, s.result.ys_log_probs)
                for s in streams
            ]
        for stream in streams:
            stream.accept_waveform(SAMPLE_RATE, FLUSH_SILENCE)
            stream.input_finished()
        while ready := [s for s in streams if recognizer.is_ready(s)]:
            raise_if_cancelled(cancelled)
            recognizer.decode_streams(ready)
        results = [recognizer.get_result_all(s) for s in streams]
        return [Hypothesis(r.tokens, r.timestamps, r.ys_probs) for r in results]


def _at_least(samples: Samples, length: int) -> Samples:
    return samples if len(samples) >= length else np.pad(samples, (0, length - len(samples)))
