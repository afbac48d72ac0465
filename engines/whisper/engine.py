"""Whisper through faster-whisper (CTranslate2): any length of audio, every option effective.

Two ways lead through the library:

- **sequential**: 30 s windows one after the other, each with the text before it as context and
  with hotter retries when a window looks wrong;
- **batched**: windows of speech that voice activity detection has cut, ``batch_size`` at a time,
  without context and without retries, several times faster.

The batched way is taken when ``vad_filter`` is on, ``batch_size`` is above 1 and no option is set
that only the sequential way honours, see :func:`engines.whisper.whisper_options.runs_batched`.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.vad import VadOptions, get_speech_timestamps
from numpy.typing import NDArray

from engines.whisper.whisper_options import (
    check_ranges,
    runs_batched,
    vad_options,
    without_effect,
)
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    ModelUnavailable,
    SpeechError,
)
from speech.ports import TranscribeOptions, clip_times
from speech.transcript import Recognition, Segment, Word

_OURS = {"model", "batch_size", "vad_filter", "vad_parameters", "clip_timestamps"}
_LIBRARYS = tuple(f.name for f in fields(TranscribeOptions) if f.name not in _OURS)

_SHORTEST_S = 0.1
_SILENCE = 1 / 32768
"""One step of 16-bit PCM: what stays below it is silence, on which Whisper makes up text."""
_ROOM_FOR_TEXT = 220
"""Tokens of a window kept free of context; half of Whisper's 448, less its control tokens."""
_FRAMES_PER_BLOCK = 6000


class WhisperEngine:
    """One loaded Whisper model; :meth:`transcribe` may run in several threads at once."""

    def __init__(self, path: Path, *, device: str, compute_type: str, threads: int) -> None:
        """Load a CTranslate2 directory from disk; the hub is never asked.

        ``device`` is "cpu" or "cuda"; ``compute_type`` "auto" means float16 on cuda and int8 on
        cpu; ``threads`` are the CPU threads of one inference. Raises ModelUnavailable.
        """
        missing = [n for n in ("model.bin", "tokenizer.json") if not (path / n).is_file()]
        if missing:
            raise ModelUnavailable(f"{path} holds no Whisper model: no {' and no '.join(missing)}")
        if compute_type == "auto":
            compute_type = "float16" if device == "cuda" else "int8"
        try:
            self._model = WhisperModel(
                str(path),
                device=device,
                compute_type=compute_type,
                cpu_threads=threads,
                num_workers=1,
                local_files_only=True,
            )
        except Exception as error:
            raise ModelUnavailable(f"the Whisper model in {path} does not load: {error}") from error

    def transcribe(
        self,
        samples: Samples,
        options: TranscribeOptions,
        cancelled: Callable[[], bool] = lambda: False,
        report: Callable[[float], None] = lambda seconds_done: None,
    ) -> Recognition:
        """Recognise float32 [samples] at 16 kHz of any length; silence gives no segments.

        ``cancelled`` is polled before each window and between segments, ``report`` hears how far
        the segments are. Raises InvalidRequest for options that contradict the model or themselves,
        Cancelled, EngineFailed.
        """
        check_ranges(options)
        self._check_against_model(options)
        clips = clip_times(options)
        vad = vad_options(options)
        warnings = tuple(without_effect(options, self._model.model.is_multilingual))
        if len(samples) < _SHORTEST_S * SAMPLE_RATE or not _audible(samples):
            return _nothing(options, warnings)
        try:
            return self._run(samples, options, clips, vad, cancelled, report, warnings)
        except SpeechError:
            raise
        except Exception as error:
            raise EngineFailed(f"Whisper failed: {type(error).__name__}: {error}") from error

    def _run(
        self,
        samples: Samples,
        options: TranscribeOptions,
        clips: list[float],
        vad: VadOptions | None,
        cancelled: Callable[[], bool],
        report: Callable[[float], None],
        warnings: tuple[str, ...],
    ) -> Recognition:
        model = _RequestModel(self._model, options, cancelled)
        given = {name: getattr(options, name) for name in _LIBRARYS}
        given["suppress_tokens"] = options.suppress_tokens and list(options.suppress_tokens)
        if options.language_detection_threshold is None:
            given["language_detection_threshold"] = 0.0  # no threshold: the first window decides
        batched = runs_batched(options)
        if batched:
            segments, info = BatchedInferencePipeline(model).transcribe(
                samples,
                vad_filter=True,
                vad_parameters=vad,
                batch_size=options.batch_size,
                **given,
            )
        else:
            if vad is not None and clips:
                clips, vad = _speech_within(samples, clips, vad), None
                if not clips:
                    return _nothing(options, warnings)
            segments, info = model.transcribe(
                samples,
                vad_filter=vad is not None,
                vad_parameters=vad,
                clip_timestamps=clips or "0",
                **given,
            )
        if not info.duration_after_vad:
            return _nothing(options, warnings)
        if batched:
            segments = (s for s in segments if not _unspoken(s, options))
        return Recognition(
            tuple(_segments(segments, samples, cancelled, report)),
            info.language,
            float(info.language_probability),
            warnings,
        )

    def _check_against_model(self, options: TranscribeOptions) -> None:
        tokenizer = self._model.hf_tokenizer
        language = options.language
        if language is not None and not (
            tokenizer.token_to_id(f"<|{language}|>")
            if self._model.model.is_multilingual
            else language == "en"
        ):
            raise InvalidRequest(f"language '{language}' is not known to this model")
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


class _RequestModel(WhisperModel):  # type: ignore[misc]  # the library has no types
    """The loaded model as one request sees it.

    The library keeps ``chunk_length`` on the shared feature extractor and lets context and hints
    grow beyond the positions of the model; a view of its own per request prevents both, and gives
    each window a place to be cancelled.
    """

    def __init__(
        self, loaded: WhisperModel, options: TranscribeOptions, cancelled: Callable[[], bool]
    ) -> None:
        self.__dict__.update(loaded.__dict__)
        self.feature_extractor = copy.copy(loaded.feature_extractor)
        self.feature_extractor.__class__ = _BlockwiseFeatures
        self._room_for_text = options.max_new_tokens or _ROOM_FOR_TEXT
        self._cancelled = cancelled
        self._window = loaded.feature_extractor.nb_max_frames

    def encode(self, features: NDArray[np.float32]) -> Any:
        if self._cancelled():
            raise Cancelled("the transcription was given up")
        # The library fills every window up to 30 s, also for a model that was trained on less.
        return super().encode(features[..., : self._window])

    def get_prompt(self, tokenizer: Any, previous_tokens: list[int], **hints: Any) -> list[int]:
        fixed = len(super().get_prompt(tokenizer, [], **hints)) + 1
        room = max(0, self.max_length - self._room_for_text - fixed)
        context = previous_tokens[-room:] if room else []
        prompt: list[int] = super().get_prompt(tokenizer, context, **hints)
        return prompt


class _BlockwiseFeatures(FeatureExtractor):  # type: ignore[misc]  # the library has no types
    """The library's log-mel features, bit for bit, in a sixth of the memory.

    Its own take 50 MiB for each minute of audio, 12 GB for four hours.
    """

    def __call__(
        self, waveform: Samples, padding: int = 160, chunk_length: int | None = None
    ) -> NDArray[np.float32]:
        if chunk_length is not None:
            self.n_samples = chunk_length * self.sampling_rate
            self.nb_max_frames = self.n_samples // self.hop_length
        padded = np.pad(np.pad(waveform, (0, padding)), self.n_fft // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)
        frames = windows[:: self.hop_length][:-1]
        hann = np.hanning(self.n_fft + 1)[:-1].astype(np.float32)
        mel = np.empty((len(self.mel_filters), len(frames)), np.float32)
        for start in range(0, len(frames), _FRAMES_PER_BLOCK):
            block = frames[start : start + _FRAMES_PER_BLOCK]
            power = np.abs(np.fft.rfft(block * hann).astype(np.complex64)) ** 2
            mel[:, start : start + len(block)] = self.mel_filters @ power.T
        np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)
        np.maximum(mel, mel.max(initial=-10.0) - 8.0, out=mel)
        mel += 4.0
        mel /= 4.0
        return mel


def _speech_within(samples: Samples, clips: list[float], vad: VadOptions) -> list[float]:
    """The parts of the clips in which someone speaks, as clips."""
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


def _unspoken(segment: Any, options: TranscribeOptions) -> bool:
    """Whisper's silence rule, which the batched way of the library leaves out."""
    threshold, sure = options.no_speech_threshold, options.log_prob_threshold
    return (
        threshold is not None
        and segment.no_speech_prob > threshold
        and not (sure is not None and segment.avg_logprob > sure)
    )


def _nothing(options: TranscribeOptions, warnings: tuple[str, ...]) -> Recognition:
    return Recognition((), options.language, 1.0 if options.language else None, warnings)


def _segments(
    heard: Iterable[Any],
    samples: Samples,
    cancelled: Callable[[], bool],
    report: Callable[[float], None],
) -> Iterator[Segment]:
    """Segments of the domain: times inside the file and rising, no text where nothing sounds."""
    duration = len(samples) / SAMPLE_RATE
    before = 0.0
    for segment in heard:
        if cancelled():
            raise Cancelled("the transcription was given up")
        start = min(max(float(segment.start), 0.0), duration)
        end = min(max(float(segment.end), start), duration)
        report(end)
        stretch = samples[int(start * SAMPLE_RATE) : math.ceil(end * SAMPLE_RATE)]
        if not segment.text.strip() or not _audible(stretch):
            continue
        words = []
        for word in segment.words or ():
            word_start = min(max(float(word.start), before), duration)
            before = min(max(float(word.end), word_start), duration)
            words.append(Word(word.word, word_start, before, float(word.probability)))
        yield Segment(
            start=words[0].start if words else start,
            end=words[-1].end if words else end,
            text=segment.text,
            words=tuple(words),
            tokens=tuple(segment.tokens),
            seek=segment.seek,
            temperature=segment.temperature,
            avg_logprob=segment.avg_logprob,
            compression_ratio=segment.compression_ratio,
            no_speech_prob=segment.no_speech_prob,
        )
