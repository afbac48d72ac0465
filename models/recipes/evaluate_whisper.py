"""Figures of the small Whisper, measured through the engine of the service."""

import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from engines.whisper.engine import WhisperEngine
from models.recipes.evaluate_ctc import digit_strings, quiet_words
from models.recipes.grammar import normalise
from models.recipes.heldout import LANGUAGES, SAMPLE_RATE_HZ, Reference, references
from models.recipes.synth import EMOTIONS, Language
from speech.ports import TranscribeOptions

_LONG_UTTERANCES = 50


def load(folder: Path) -> WhisperEngine:
    """The model on one thread."""
    return WhisperEngine(folder, device="cpu", compute_type="int8", threads=1)


def measure(model: WhisperEngine, count: int) -> dict[str, Any]:
    """WER with the language given and found, word times, long form, digits and quiet inputs."""
    figures: dict[str, Any] = {}
    for language in LANGUAGES:
        heldout = references(language, count)
        figures[language] = {
            **measure_set(model, heldout),
            "wer_language_given": measure_set(model, heldout, language)["wer"],
            "wer_by_style": {
                emotion: measure_set(model, references(language, count // 4, emotion))["wer"]
                for emotion in EMOTIONS
            },
            "long_form": measure_long(model, language),
        }
    strings = digit_strings()
    if strings:
        decoded = [transcribe(model, samples) for _, samples in strings]
        figures["fsdd_wer"] = _wer([text for text, _ in strings], decoded)
    figures["words_in_quiet"] = quiet_words(lambda samples: transcribe(model, samples))
    return figures


def transcribe(model: WhisperEngine, samples: np.ndarray, **options: Any) -> str:
    """Text of one waveform, with the defaults of the API."""
    decoded = model.transcribe(samples, TranscribeOptions(**options))
    return "".join(segment.text for segment in decoded.segments)


def measure_set(
    model: WhisperEngine, heldout: list[Reference], language: Language | None = None
) -> dict[str, Any]:
    """WER, share of languages found, word start and end errors, real-time factor."""
    started_s, audio_s, found = time.process_time(), 0.0, 0
    expected, decoded, errors = [], [], []
    for reference in heldout:
        recognition = model.transcribe(reference.samples, TranscribeOptions(language=language))
        words = [word for segment in recognition.segments for word in segment.words]
        found += recognition.language == reference.language
        audio_s += len(reference.samples) / SAMPLE_RATE_HZ
        expected.append(reference.text)
        decoded.append("".join(word.text for word in words))
        if normalise(expected[-1]) == normalise(decoded[-1]) and len(words) == len(reference.words):
            errors += [
                abs(word.start - start_s)
                for word, (_, start_s, _) in zip(words, reference.words, strict=True)
            ]
    return {
        "utterances": len(heldout),
        "wer": _wer(expected, decoded),
        "language_found": round(100 * found / len(heldout), 1),
        "word_start_error_s": {
            "mean": round(float(np.mean(errors)), 3) if errors else None,
            "p90": round(float(np.percentile(errors, 90)), 3) if errors else None,
        },
        "rtf": round((time.process_time() - started_s) / audio_s, 4),
    }


def measure_long(model: WhisperEngine, language: Language) -> dict[str, Any]:
    """WER of a few minutes in one piece: sequential, and batched over speech found by the VAD."""
    chosen = references(language, _LONG_UTTERANCES)
    rng = np.random.default_rng(5)
    blocks: list[np.ndarray] = []
    for reference in chosen:
        pause = np.zeros(int(rng.uniform(0.1, 1.5) * SAMPLE_RATE_HZ), np.float32)
        blocks += [reference.samples, pause]
    samples = np.concatenate(blocks)
    text = " ".join(reference.text for reference in chosen)
    batched = transcribe(model, samples, language=language, vad_filter=True, batch_size=4)
    return {
        "duration_s": round(len(samples) / SAMPLE_RATE_HZ, 1),
        "wer_sequential": _wer([text], [transcribe(model, samples, language=language)]),
        "wer_batched": _wer([text], [batched]),
    }


def _wer(expected: list[str], decoded: list[str]) -> float:
    pairs = [normalise(text) for text in expected], [normalise(text) for text in decoded]
    return round(100 * float(jiwer.wer(*pairs)), 2)
