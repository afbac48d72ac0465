"""Whisper through faster-whisper (CTranslate2): any length of audio, every option effective.

The library has two modes:

- **sequential**: windows one after the other, each with the previous text as context and with
  retries at higher temperatures when a window looks wrong;
- **batched**: windows of speech that voice activity detection has cut, ``batch_size`` at a time,
  without context and without retries, several times faster.

A window is 30 s, or shorter where the model was trained on less. In both modes the windows of all
requests share batches, see :class:`engines.whisper.scheduler.Scheduler`.

The batched mode is used when ``vad_filter`` is on, ``batch_size`` is above 1 and no option is set
that only the sequential mode honours, see :func:`engines.whisper.whisper_options.runs_batched`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import ctranslate2
from faster_whisper import WhisperModel
from faster_whisper.vad import VadOptions, get_speech_timestamps

from engines.cancellation import CancelCheck, raise_if_cancelled
from engines.whisper.batched import BatchedTranscription
from engines.whisper.coverage import in_file
from engines.whisper.encoders import Asked, WhisperFiles
from engines.whisper.finite import FiniteWhisper, automatic
from engines.whisper.request_model import RequestModel
from engines.whisper.scheduler import Scheduler
from engines.whisper.shared_model import SharedModel
from engines.whisper.warm_up import warm_up
from engines.whisper.whisper_options import (
    check_ranges,
    needs_words,
    runs_batched,
    vad_options,
    without_effect,
)
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    EngineFailed,
    InvalidRequest,
    ModelNotInstalled,
    ModelUnavailable,
    SpeechError,
)
from speech.languages import LANGUAGES
from speech.media.segmentation import Region
from speech.ports import TranscribeOptions, clip_times
from speech.transcript import Recognition, Segment, Word

_CONVERTED = {"model", "batch_size", "vad_filter", "vad_parameters", "clip_timestamps"}
_PASSED_ON = tuple(f.name for f in fields(TranscribeOptions) if f.name not in _CONVERTED)

BATCH_ON_GPU = 16
"""Windows of a batch on a GPU, beyond which a window hardly gets cheaper."""
_SHORTEST_S = 0.1
_SILENCE = 1 / 32768
"""One step of 16-bit PCM: audio below it is silence, on which Whisper hallucinates text."""


class WhisperEngine:
    """One loaded Whisper model; :meth:`transcribe` may run in several threads at once."""

    def __init__(
        self,
        path: Path,
        *,
        device: str,
        compute_type: str,
        threads: int,
        encoder: Asked = "auto",
        max_batch: int | None = None,
        on_rerun: Callable[[int], None] = lambda windows: None,
    ) -> None:
        """Load a CTranslate2 directory from disk, never from the hub.

        ``device`` is "cpu" or "cuda"; ``compute_type`` "auto" means int8 on cpu, and on cuda
        bfloat16, or float16 where the GPU has no bfloat16; ``threads`` are the CPU threads of one
        inference; ``encoder`` is the library that runs the encoder, see
        :class:`engines.whisper.encoders.WhisperFiles`. ``max_batch`` bounds the windows of a batch,
        None: 1 on the CPU, where windows are no faster together, and :data:`BATCH_ON_GPU`.
        ``on_rerun`` receives the number of windows that run again in another compute type, see
        :class:`engines.whisper.finite.FiniteWhisper`. Raises ModelNotInstalled, ModelUnavailable.
        """
        missing = [n for n in ("model.bin", "tokenizer.json") if not (path / n).is_file()]
        if missing:
            lacking = f"{path} holds no Whisper model: no {' and no '.join(missing)}"
            raise ModelNotInstalled("files of the Whisper model are missing", lacking)
        if compute_type == "auto":
            compute_type = automatic(device)
        # Two at once on a CPU of several cores: while one computes what has to be computed by one
        # thread, the other has the rest. A GPU computes one after the other.
        parallel = 2 if device == "cpu" and threads > 1 else 1
        files = WhisperFiles(path, device=device, compute_type=compute_type, encoder=encoder)
        self.encoder = files.encoder
        try:
            with files.folder() as folder:
                self._model = WhisperModel(
                    str(folder),
                    device=device,
                    compute_type=compute_type,
                    cpu_threads=threads,
                    num_workers=parallel,
                    local_files_only=True,
                )
            model = files.with_encoder(self._model.model)
        except Exception as error:
            raise ModelUnavailable(
                "the Whisper model does not load", detail=f"{path}: {error}"
            ) from error
        self._path = path
        self._window_s = self._model.feature_extractor.chunk_length

        def load(wider: str) -> ctranslate2.models.Whisper:
            with files.folder() as folder:
                loaded = ctranslate2.models.Whisper(
                    str(folder),
                    device=device,
                    compute_type=wider,
                    intra_threads=threads,
                    inter_threads=parallel,
                )
            return files.with_encoder(loaded)

        finite = FiniteWhisper(model, load, on_rerun)
        self._model.model = finite
        self._model.feature_extractor = files.features(self._model.feat_kwargs)
        if max_batch is None:
            max_batch = 1 if device == "cpu" else BATCH_ON_GPU
        self._scheduler = Scheduler(finite, max_batch, parallel)

    @property
    def compute_type(self) -> str:
        """The number format that CTranslate2 computes in, such as int8_float32."""
        return str(self._model.model.compute_type)

    def warm_up(self) -> None:
        """Run the first windows, see :func:`engines.whisper.warm_up.warm_up`."""
        warm_up(self._model, self._path)

    def transcribe(
        self,
        samples: Samples,
        options: TranscribeOptions,
        cancelled: CancelCheck = lambda: False,
        report: Callable[[float], None] = lambda seconds_done: None,
        emit: Callable[[Segment], None] = lambda segment: None,
        *,
        background: bool = False,
    ) -> Recognition:
        """Recognise float32 [samples] at 16 kHz of any length; silence gives no segments.

        ``cancelled`` is polled before each window, while one waits and between segments;
        ``report`` receives the end of each segment in seconds, ``emit`` the segment itself. With
        ``background`` the windows of other requests go first. Raises InvalidRequest for options
        that contradict the model or each other, Cancelled, EngineFailed.
        """
        check_ranges(options)
        self._check_against_model(options)
        clips = clip_times(options)
        vad = vad_options(options, self._window_s)
        warnings = list(without_effect(options, self._model.model.is_multilingual))
        if (options.chunk_length or 0) > self._window_s:
            warnings.append(f"chunk_length is at most {self._window_s:g} s with this model")
        if len(samples) < _SHORTEST_S * SAMPLE_RATE or not _audible(samples):
            return _nothing(options, warnings)
        token = self._model.hf_tokenizer.token_to_id
        control = token("<|startoftranscript|>"), token("<|notimestamps|>")
        try:
            with self._scheduler.request(background=background) as request:
                shared = SharedModel(self._scheduler, request, *control, cancelled)
                batched = runs_batched(options)
                model = RequestModel(self._model, shared, options, cancelled, batched=batched)
                return self._run(
                    model, samples, options, clips, vad, cancelled, report, emit, warnings
                )
        except SpeechError:
            raise
        except Exception as error:
            raise EngineFailed(f"Whisper failed: {type(error).__name__}: {error}") from error

    def _run(
        self,
        model: RequestModel,
        samples: Samples,
        options: TranscribeOptions,
        clips: list[float],
        vad: VadOptions | None,
        cancelled: CancelCheck,
        report: Callable[[float], None],
        emit: Callable[[Segment], None],
        warnings: list[str],
    ) -> Recognition:
        if vad is not None and runs_batched(options):
            window_s = min(options.chunk_length or self._window_s, self._window_s)
            transcription = BatchedTranscription(model, options, vad, window_s).transcribe(samples)
            if transcription is None:
                return _nothing(options, warnings)
            segments, info = transcription
            segments = (s for s in segments if not _is_silence(s, options))
        else:
            if vad is not None and clips:
                clips, vad = _speech_within(samples, clips, vad), None
                if not clips:
                    return _nothing(options, warnings)
            passed = {name: getattr(options, name) for name in _PASSED_ON}
            passed["word_timestamps"] = needs_words(options)
            if options.chunk_length:
                passed["chunk_length"] = min(options.chunk_length, self._window_s)
            passed["suppress_tokens"] = options.suppress_tokens and list(options.suppress_tokens)
            if options.language_detection_threshold is None:
                passed["language_detection_threshold"] = 0.0  # none: the first window decides
            segments, info = model.transcribe(
                samples,
                vad_filter=vad is not None,
                vad_parameters=vad,
                clip_timestamps=clips or "0",
                **passed,
            )
            if not info.duration_after_vad:
                return _nothing(options, warnings)
        if vad is None:  # VAD leaves no silence, and makes the times those of the words
            segments = (s for s in segments if _audible(_part(samples, s)))
        found = []
        for segment in _segments(segments, samples, options, cancelled, report):
            found.append(segment)
            emit(segment)
        missed: tuple[Region, ...] = ()
        if model.missed:
            speech = None if vad is None else get_speech_timestamps(samples, vad)
            missed = in_file(model.missed, speech)
        return Recognition(
            tuple(found),
            info.language,
            float(info.language_probability),
            tuple(warnings),
            missed,
        )

    def _check_against_model(self, options: TranscribeOptions) -> None:
        tokenizer = self._model.hf_tokenizer
        language = options.language
        if language is not None and not self._knows(language):
            known = ", ".join(filter(self._knows, LANGUAGES))
            raise InvalidRequest(
                f"language '{language}' is not known to this model, which knows {known}"
            )
        size = tokenizer.get_vocab_size()
        wrong = [t for t in options.suppress_tokens or () if not -1 <= t < size]
        if wrong:
            raise InvalidRequest(f"suppress_tokens holds ids outside of the vocabulary: {wrong}")
        hint = options.prefix or options.hotwords or ""
        taken = 5 + min(len(tokenizer.encode(hint, add_special_tokens=False).ids), 223)
        if (options.max_new_tokens or 1) + taken > self._model.max_length:
            raise InvalidRequest(
                f"max_new_tokens must be at most {self._model.max_length - taken} here"
            )

    def _knows(self, language: str) -> bool:
        if not self._model.model.is_multilingual:
            return language == "en"
        return language in LANGUAGES and bool(
            self._model.hf_tokenizer.token_to_id(f"<|{language}|>")
        )


def _speech_within(samples: Samples, clips: list[float], vad: VadOptions) -> list[float]:
    """The speech within the clips, as clips: starts and ends in turn, in seconds."""
    ends = [*clips, len(samples) / SAMPLE_RATE] if len(clips) % 2 else clips
    speech = get_speech_timestamps(samples, vad)
    parts = []
    for clip_start, clip_end in zip(ends[::2], ends[1::2], strict=True):
        for chunk in speech:
            start = max(clip_start, chunk["start"] / SAMPLE_RATE)
            end = min(clip_end, chunk["end"] / SAMPLE_RATE)
            if start < end:
                parts += [start, end]
    return parts


def _audible(samples: Samples) -> bool:
    return bool(len(samples)) and max(samples.max(), -samples.min()) >= _SILENCE


def _part(samples: Samples, segment: Any) -> Samples:
    start = max(0, int(segment.start * SAMPLE_RATE))
    return samples[start : math.ceil(segment.end * SAMPLE_RATE)]


def _is_silence(segment: Any, options: TranscribeOptions) -> bool:
    """Whisper's silence rule, which the batched mode of the library leaves out."""
    threshold, confident = options.no_speech_threshold, options.log_prob_threshold
    return (
        threshold is not None
        and segment.no_speech_prob > threshold
        and not (confident is not None and segment.avg_logprob > confident)
    )


def _nothing(options: TranscribeOptions, warnings: Sequence[str]) -> Recognition:
    return Recognition((), options.language, 1.0 if options.language else None, tuple(warnings))


def _segments(
    decoded: Iterable[Any],
    samples: Samples,
    options: TranscribeOptions,
    cancelled: CancelCheck,
    report: Callable[[float], None],
) -> Iterator[Segment]:
    """Segments with text, with ascending times inside the file."""
    duration = len(samples) / SAMPLE_RATE
    previous_end = 0.0
    for segment in decoded:
        raise_if_cancelled(cancelled)
        start = min(max(float(segment.start), 0.0), duration)
        end = min(max(float(segment.end), start), duration)
        report(end)
        if not segment.text.strip():
            continue
        words = []
        for word in segment.words or ():
            word_start = min(max(float(word.start), previous_end), duration)
            previous_end = min(max(float(word.end), word_start), duration)
            words.append(Word(word.word, word_start, previous_end, float(word.probability)))
        yield Segment(
            start=words[0].start if words else start,
            end=words[-1].end if words else end,
            text=segment.text,
            words=tuple(words) if options.word_timestamps else (),
            tokens=tuple(segment.tokens),
            seek=segment.seek,
            temperature=segment.temperature,
            avg_logprob=segment.avg_logprob,
            compression_ratio=segment.compression_ratio,
            no_speech_prob=segment.no_speech_prob,
        )
