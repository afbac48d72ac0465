"""Figures of the CTC models, measured through sherpa-onnx as the service uses it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import sherpa_onnx

from models.recipes.digits import digit_recordings
from models.recipes.grammar import normalise
from models.recipes.heldout import LANGUAGES, SAMPLE_RATE_HZ, Reference, references
from models.recipes.synth import EMOTIONS

Recognise = Callable[[np.ndarray], Any]

_TAIL_S = 0.5


def offline_recogniser(folder: Path) -> Recognise:
    """Samples to a sherpa-onnx result, the whole utterance at once."""
    recogniser = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
        model=str(folder / "model.onnx"), tokens=str(folder / "tokens.txt"), num_threads=1
    )

    def recognise(samples: np.ndarray) -> Any:
        stream = recogniser.create_stream()
        stream.accept_waveform(SAMPLE_RATE_HZ, samples)
        recogniser.decode_stream(stream)
        return stream.result

    return recognise


def streaming_recogniser(folder: Path, feed_s: float) -> Recognise:
    """Samples fed ``feed_s`` at a time, flushed by half a second of silence."""
    recogniser = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
        model=str(folder / "model.onnx"), tokens=str(folder / "tokens.txt"), num_threads=1
    )
    step = int(feed_s * SAMPLE_RATE_HZ)

    def recognise(samples: np.ndarray) -> Any:
        stream = recogniser.create_stream()
        flushed = np.concatenate([samples, np.zeros(int(_TAIL_S * SAMPLE_RATE_HZ), np.float32)])
        for start in range(0, len(flushed), step):
            stream.accept_waveform(SAMPLE_RATE_HZ, flushed[start : start + step])
            while recogniser.is_ready(stream):
                recogniser.decode_stream(stream)
        stream.input_finished()
        while recogniser.is_ready(stream):
            recogniser.decode_stream(stream)
        return recogniser.get_result_all(stream)

    return recognise


def measure(recognise: Recognise, count: int) -> dict[str, Any]:
    """WER per language and style, word start errors, digits, quiet inputs, real-time factor."""
    figures: dict[str, Any] = {}
    for language in LANGUAGES:
        heldout = references(language, count)
        figures[language] = measure_set(recognise, heldout)
        figures[language]["wer_by_style"] = {
            emotion: measure_set(recognise, references(language, count // 4, emotion))["wer"]
            for emotion in EMOTIONS
        }
    strings = digit_strings()
    if strings:
        recognised = [normalise(recognise(samples).text) for _, samples in strings]
        figures["fsdd_wer"] = round(100 * jiwer.wer([text for text, _ in strings], recognised), 2)
    figures["words_in_quiet"] = quiet_words(lambda samples: recognise(samples).text)
    return figures


def measure_set(recognise: Recognise, heldout: list[Reference]) -> dict[str, Any]:
    """WER in percent, median and 90th percentile of word start errors, real-time factor."""
    started_s, audio_s = time.process_time(), 0.0
    expected, recognised, errors = [], [], []
    for reference in heldout:
        result = recognise(reference.samples)
        audio_s += len(reference.samples) / SAMPLE_RATE_HZ
        expected.append(normalise(reference.text))
        recognised.append(normalise(result.text))
        if expected[-1] == recognised[-1]:
            errors += _start_errors(reference, result)
    return {
        "utterances": len(heldout),
        "wer": round(100 * jiwer.wer(expected, recognised), 2),
        "word_start_error_s": {
            "median": round(float(np.median(errors)), 3) if errors else None,
            "p90": round(float(np.percentile(errors, 90)), 3) if errors else None,
        },
        "rtf": round((time.process_time() - started_s) / audio_s, 4),
    }


def _start_errors(reference: Reference, result: Any) -> list[float]:
    starts = [
        stamp
        for token, stamp in zip(result.tokens, result.timestamps, strict=True)
        if token.strip("▁ ") == ""
    ]
    if len(starts) != len(reference.words):
        return []
    return [
        abs(stamp - start_s) for stamp, (_, start_s, _) in zip(starts, reference.words, strict=True)
    ]


def digit_strings() -> list[tuple[str, np.ndarray]]:
    """Strings of five held-out recorded digits, one speaker each: words and samples."""
    recordings = digit_recordings("heldout")
    rng = np.random.default_rng(0)
    gap = np.zeros(SAMPLE_RATE_HZ // 5, np.float32)
    strings: list[tuple[str, np.ndarray]] = []
    for speaker in sorted({recording.speaker for recording in recordings}):
        own = [recording for recording in recordings if recording.speaker == speaker]
        order = rng.permutation(len(own))
        for start in range(0, len(own), 5):
            string = [own[i] for i in order[start : start + 5]]
            blocks = [gap]
            for recording in string:
                blocks += [recording.samples.astype(np.float32) / 32768.0, gap]
            text = " ".join(recording.word for recording in string)
            strings.append((text, np.concatenate(blocks)))
    return strings


def quiet_words(transcribe: Callable[[np.ndarray], str]) -> int:
    """Words recognised in 10 s each of digital silence and of white noise at three levels."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(10 * SAMPLE_RATE_HZ).astype(np.float32)
    levels = (0.0, 0.001, 0.01, 0.1)
    return sum(len(transcribe(noise * np.float32(level)).split()) for level in levels)
