"""Recognisers in ONNX: audio of any length, in utterances.

Voice activity detection cuts the audio into utterances of the length that the model can process; a
batch of them is decoded at once. The format of a model names its backend: sherpa-onnx or onnx-asr.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from configs.catalogue import ModelEntry
from engines.cancellation import CancelCheck, raise_if_cancelled
from engines.device import Device
from engines.onnx_asr.hotwords import check_hotwords
from engines.onnx_asr.hypothesis import Hypothesis, words_of
from engines.onnx_asr.model_options import OnnxAsrOptions
from engines.out_of_memory import failure, in_parts_that_fit
from engines.vad.silero_vad import SileroVad
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import InvalidRequest, SpeechError
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


class Backend(Protocol):
    """A loaded recogniser; :meth:`decode` may run in several threads at once."""

    @property
    def takes_hotwords(self) -> bool:
        """Whether hotwords have an effect."""
        ...

    @property
    def compute_type(self) -> str:
        """int8 for the quantised files, else float32."""
        ...

    def decode(
        self, utterances: Sequence[Samples], options: TranscribeOptions, cancelled: CancelCheck
    ) -> list[Hypothesis]:
        """The hypothesis of each utterance, float32 [samples] at 16 kHz, in one batch."""
        ...


class OnnxAsrEngine:
    """One loaded model; :meth:`transcribe` may run in several threads at once."""

    def __init__(
        self,
        entry: ModelEntry,
        path: Path,
        *,
        device: Device,
        compute_type: str = "auto",
        threads: int = 1,
    ) -> None:
        """Load the model of a catalogue entry from ``path``; raises ModelUnavailable.

        ``device`` is "cpu" or "cuda" (sherpa-onnx needs its CUDA build); ``compute_type`` is "int8"
        for the quantised files.
        """
        self._options = OnnxAsrOptions.of(entry)
        self._entry = entry
        self._backend = _backend(
            entry, self._options, path, device=device, compute_type=compute_type, threads=threads
        )
        self._vad = SileroVad()

    @property
    def compute_type(self) -> str:
        """int8 for the quantised files, else float32."""
        return self._backend.compute_type

    def warm_up(self) -> None:
        """Decode a second of silence."""
        second = np.zeros(SAMPLE_RATE, np.float32)
        self._vad.probabilities(second)
        self._backend.decode([second], TranscribeOptions(), lambda: False)

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
        ``report`` receives the end of each batch in seconds, ``emit`` each segment. A batch
        that is too large for the memory is decoded in smaller ones. Raises InvalidRequest,
        Cancelled, EngineFailed, OutOfMemory.
        """
        self._check(options)
        languages = self._entry.languages
        language = languages[0] if len(languages) == 1 else None
        if self._entry.needs_language:
            language = options.language
        warnings = tuple(self._warnings(options))
        segments = []
        try:
            for segment in self._segments(samples, options, cancelled, report):
                segments.append(segment)
                emit(segment)
        except SpeechError:
            raise
        except Exception as error:
            raise failure(f"model '{self._entry.id}' failed", error) from error
        return Recognition(tuple(segments), language, warnings=warnings)

    def _check(self, options: TranscribeOptions) -> None:
        if options.task == "translate" and not self._entry.translation:
            raise InvalidRequest(f"model '{self._entry.id}' does not translate")
        supported = self._entry.languages
        if options.language is not None and supported and options.language not in supported:
            raise InvalidRequest(
                f"language '{options.language}' is not supported by model '{self._entry.id}', "
                f"which supports {', '.join(supported)}"
            )
        if options.language is None and self._entry.needs_language:
            raise InvalidRequest(
                f"model '{self._entry.id}' does not detect the language: name it in 'language', "
                f"one of {', '.join(supported)}"
            )
        if not 1 <= options.batch_size <= _MAX_BATCH:
            raise InvalidRequest(f"batch_size must be between 1 and {_MAX_BATCH}")
        check_hotwords(options.hotwords)

    def _warnings(self, options: TranscribeOptions) -> Iterator[str]:
        ignored = ignored_options(options, takes_hotwords=self._backend.takes_hotwords)
        if ignored:
            yield f"model '{self._entry.id}' does not honour {', '.join(ignored)}"
        if options.word_timestamps and not self._entry.word_timestamps:
            yield f"model '{self._entry.id}' gives no times of words"
        if options.language is not None and self._entry.detects_language:
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
            samples_of = [_cut(samples, utterance) for utterance in batch]
            decode = partial(self._backend.decode, options=options, cancelled=cancelled)
            hypotheses = in_parts_that_fit(samples_of, decode)
            for utterance, hypothesis in zip(batch, hypotheses, strict=True):
                segment = _segment(hypothesis, utterance, with_words=options.word_timestamps)
                if segment is not None:
                    yield segment
            report(batch[-1][1])


def _backend(
    entry: ModelEntry,
    options: OnnxAsrOptions,
    path: Path,
    *,
    device: Device,
    compute_type: str,
    threads: int,
) -> Backend:
    # Imported here: each of the two libraries is needed for its own formats alone.
    if entry.backend == "onnx_asr":
        from engines.onnx_asr.batched_backend import BatchedBackend

        return BatchedBackend(
            entry, path, device=device, compute_type=compute_type, threads=threads
        )
    from engines.onnx_asr.sherpa_backend import SherpaBackend
    from engines.onnx_asr.sherpa_models import load

    return SherpaBackend(
        load(entry, options, path, device=device, compute_type=compute_type, threads=threads)
    )


def _segment(hypothesis: Hypothesis, utterance: Region, *, with_words: bool) -> Segment | None:
    """The segment of an utterance with text; with that utterance's times if the words have none."""
    if hypothesis.tokens and not hypothesis.times:
        text = hypothesis.text
        return Segment(*utterance, text=f" {text}") if text else None
    words = words_of(hypothesis, utterance)
    if not words:
        return None
    return Segment(
        start=words[0].start,
        end=words[-1].end,
        text="".join(word.text for word in words),
        words=words if with_words else (),
    )


def _cut(samples: Samples, utterance: Region) -> Samples:
    start, end = (round(time * SAMPLE_RATE) for time in utterance)
    return _at_least(samples[start:end], _SHORTEST)


def _at_least(samples: Samples, length: int) -> Samples:
    return samples if len(samples) >= length else np.pad(samples, (0, length - len(samples)))
