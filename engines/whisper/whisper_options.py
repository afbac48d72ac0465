"""Options of Whisper: their ranges, and the mode of the library that they require."""

import math
from collections.abc import Iterator
from dataclasses import fields

from faster_whisper.vad import VadOptions

from speech.errors import InvalidRequest
from speech.ports import TranscribeOptions, clip_times

_DEFAULTS = TranscribeOptions()
_SEQUENTIAL_ONLY = (
    "best_of",
    "compression_ratio_threshold",
    "log_prob_threshold",
    "prompt_reset_on_temperature",
    "prefix",
    "max_initial_timestamp",
    "hallucination_silence_threshold",
)
_BOUNDS: dict[str, tuple[float, float]] = {
    "batch_size": (1, 64),
    "beam_size": (1, 64),
    "best_of": (1, 64),
    "patience": (0.01, 64),
    "length_penalty": (-100, 100),
    "repetition_penalty": (0.01, 100),
    "no_repeat_ngram_size": (0, 448),
    "max_new_tokens": (1, 448),
    "max_initial_timestamp": (0, 30),
    "chunk_length": (1, 30),
    "hallucination_silence_threshold": (0, math.inf),
    "language_detection_segments": (1, 1000),
}
_MAX_TEMPERATURE = 2.0


def check_ranges(options: TranscribeOptions) -> None:
    """Raise InvalidRequest for values that make the library fail or exhaust the memory."""
    for name, (low, high) in _BOUNDS.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}")
    if round(options.beam_size * options.patience) < 1:
        raise InvalidRequest("patience is too small for this beam_size: no hypothesis is left")
    if not options.temperature:
        raise InvalidRequest("temperature needs one value at least")
    if not all(0 <= t <= _MAX_TEMPERATURE for t in options.temperature):
        raise InvalidRequest(f"temperature must be between 0 and {_MAX_TEMPERATURE:g}")


def runs_batched(options: TranscribeOptions) -> bool:
    """Whether the batched mode is requested and honours every option that is not a default.

    That mode ignores ``condition_on_previous_text`` and the retries of ``temperature``; their
    defaults do not require the sequential mode.
    """
    return (
        options.vad_filter
        and options.batch_size > 1
        and options.temperature in (_DEFAULTS.temperature, (0.0,))
        and not clip_times(options)
        and all(getattr(options, n) == getattr(_DEFAULTS, n) for n in _SEQUENTIAL_ONLY)
    )


def needs_words(options: TranscribeOptions) -> bool:
    """Whether the times of words are computed, if only to find hallucinations."""
    return options.word_timestamps or options.hallucination_silence_threshold is not None


def vad_options(options: TranscribeOptions, window_s: float) -> VadOptions | None:
    """The library's VAD options, None without ``vad_filter``; the batched mode has its own.

    ``window_s`` is the window of the model: the batched mode cuts longer speech. Raises
    InvalidRequest for an unknown name or a value out of range.
    """
    given = dict(options.vad_parameters or {})
    unknown = sorted(set(given) - {f.name for f in fields(VadOptions)})
    if unknown:
        raise InvalidRequest(f"vad_parameters does not know {', '.join(unknown)}")
    for name, value in given.items():
        if value is None and name == "neg_threshold":
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
            raise InvalidRequest(f"vad_parameters.{name} must be a number from 0 on")
        if "threshold" in name and value > 1:
            raise InvalidRequest(f"vad_parameters.{name} is a probability, at most 1")
    if not options.vad_filter:
        return None
    if runs_batched(options):
        given.setdefault("min_silence_duration_ms", 160)
        window_s = min(options.chunk_length or window_s, window_s)
        given["max_speech_duration_s"] = min(given.get("max_speech_duration_s", window_s), window_s)
    vad = VadOptions(**given)
    if vad.max_speech_duration_s * 1000 <= 2 * vad.speech_pad_ms + 32:
        raise InvalidRequest("vad_parameters: speech_pad_ms leaves no room in the longest speech")
    return vad


def without_effect(options: TranscribeOptions, multilingual: bool) -> Iterator[str]:
    """Warnings about options without effect beside another option or on an English-only model."""
    clips = clip_times(options)
    if options.vad_parameters and not options.vad_filter:
        yield "vad_parameters has no effect without vad_filter"
    if options.prefix and options.hotwords:
        yield "hotwords has no effect on the first window, which begins with the prefix"
    if options.prefix and clips and clips[0] > 0:
        yield "prefix has no effect when the first clip begins after 0 s"
    if options.multilingual and not multilingual:
        yield "multilingual has no effect on a model that knows English alone"
