"""The first windows of a loaded Whisper model: they load its kernels and try its number format."""

import json
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel
from numpy.typing import NDArray

from engines.whisper.finite import FiniteWhisper
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, ModelUnavailable

_SEED = 7
_TOKENS = 8
_CPU_S = 1.0
_FORMANTS_HZ = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
"""Of the vowels in "father", "beet", "bought" and "boot"."""


def warm_up(model: WhisperModel, folder: Path) -> None:
    """Run the first windows; replace the model by one of wider range if they are not finite.

    The windows are speech-like sound, white noise at full scale, and silence: whole ones on a GPU,
    one second of each on the CPU, where no compute type is narrower than float32. They go through
    the encoder, the detection of the language, the beam search and, if the model has alignment
    heads, the times of words.

    They find a model whose values leave the range on any speech. They cannot find one that leaves
    it on rare input alone, and they are no recorded speech, so windows are checked at run time too.
    Raises ModelUnavailable if no compute type gives finite values, and what CTranslate2 raises.
    """
    finite: FiniteWhisper = model.model
    extractor = model.feature_extractor
    seconds = extractor.chunk_length if finite.device == "cuda" else _CPU_S
    frames = round(seconds * model.frames_per_second)
    features = np.stack([extractor(sound)[:, :frames] for sound in _sounds(seconds)])
    config = json.loads((folder / "config.json").read_text("utf-8"))
    try:
        with finite.first_windows():
            _run(model, features, aligns="alignment_heads" in config)
    except EngineFailed as error:
        raise ModelUnavailable(
            "the Whisper model computes no finite values",
            detail=f"{folder}: {error}; its weights are damaged",
        ) from error


def _run(model: WhisperModel, features: NDArray[np.float32], aligns: bool) -> None:
    token = model.hf_tokenizer.token_to_id
    prompt = [token("<|startoftranscript|>")]
    encoded = model.encode(features)
    if model.model.is_multilingual:
        model.model.detect_language(encoded)
        prompt += [token("<|en|>"), token("<|transcribe|>")]
    results = model.model.generate(
        encoded,
        [prompt] * len(features),
        max_length=2 * _TOKENS,
        return_scores=True,
        return_no_speech_prob=True,
    )
    if aligns:
        end = token("<|endoftext|>")
        texts = [[t for t in result.sequences_ids[0] if t < end] or [0] for result in results]
        frames = features.shape[-1]
        model.model.align(encoded, prompt, texts, frames, median_filter_width=7)


def _sounds(seconds: float) -> tuple[Samples, Samples, Samples]:
    """Speech-like sound, noise and silence; float32 at 16 kHz, up to full scale."""
    rng = np.random.default_rng(_SEED)
    count = round(seconds * SAMPLE_RATE)
    noise = np.clip(rng.normal(0, 0.5, count), -1, 1).astype(np.float32)
    return _speech_like(count, rng), noise, np.zeros(count, np.float32)


def _speech_like(count: int, rng: np.random.Generator) -> Samples:
    """Vowels on a falling pitch, four syllables a second with a burst of noise before each.

    The harmonics of the pitch, weighted by their distance to the formants of the vowel.
    """
    time_s = np.arange(count) / SAMPLE_RATE
    syllable = (time_s * 4).astype(int)
    formants = np.array(_FORMANTS_HZ)[syllable % len(_FORMANTS_HZ)].T
    pitch_hz = 180 - 80 * (time_s % 2) / 2
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE
    voice: NDArray[np.float64] = np.zeros(count)
    for harmonic in range(1, 36):
        distance = np.abs(formants - harmonic * pitch_hz).min(axis=0)
        voice += np.exp(-distance / 120) * np.sin(harmonic * phase)
    place = time_s * 4 % 1
    voice *= np.sin(np.pi * np.clip((place - 0.2) / 0.7, 0, 1))
    voice += (place < 0.15) * rng.normal(0, 0.5, count)
    voice /= np.abs(voice).max(initial=1e-6)
    return voice.astype(np.float32)
