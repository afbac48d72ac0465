"""Figures of demo-gigaam-emo, through ONNX Runtime as the service uses it."""

import json
from typing import Any

import numpy as np
import onnxruntime
import soundfile
import soxr
import torch

from models.recipes.emotion import FOLDER, log_mel
from models.recipes.measurements import record
from models.recipes.paths import assets
from models.recipes.speech_bank import HELDOUT, LANGUAGES, Clip, bank
from models.recipes.synth import EMOTIONS, SAMPLE_RATE_HZ

BAR_ACCURACY = 80.0
_EMODB = {"W": "angry", "T": "sad", "N": "neutral", "F": "positive"}
_WORD_MARGIN_S, _SHORTEST_WORD_S = 0.05, 0.3


class Classifier:
    """The exported model on one waveform at a time."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(FOLDER / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Probabilities in the order of ``EMOTIONS``."""
        features = log_mel(torch.from_numpy(samples)[None]).numpy()
        lengths = np.array([features.shape[2]], np.int64)
        inputs = {"features": features, "feature_lengths": lengths}
        row: np.ndarray = self._session.run(["probs"], inputs)[0][0]
        return row


def confusion(classify: Classifier, labelled: list[tuple[np.ndarray, str]]) -> np.ndarray:
    """Counts [true, found]."""
    counts = np.zeros((len(EMOTIONS), len(EMOTIONS)), int)
    for samples, emotion in labelled:
        counts[EMOTIONS.index(emotion), int(classify(samples).argmax())] += 1
    return counts


def accuracy(counts: np.ndarray) -> float | None:
    """Percent on the diagonal."""
    return round(100 * float(counts.trace() / counts.sum()), 1) if counts.sum() else None


def spoken_words(clips: list[Clip]) -> list[tuple[np.ndarray, str]]:
    """One word of every clip, the longest, with a narrow margin."""
    found = []
    for clip in clips:
        _, start_s, end_s = max(clip.words, key=lambda word: word[2] - word[1])
        spare_s = max(_WORD_MARGIN_S, (_SHORTEST_WORD_S - (end_s - start_s)) / 2)
        first = max(round((start_s - spare_s) * SAMPLE_RATE_HZ), 0)
        last = round((end_s + spare_s) * SAMPLE_RATE_HZ)
        found.append((clip.waveform[first:last], clip.emotion))
    return found


def acted_german() -> list[tuple[np.ndarray, str]]:
    """Real acted emotions of EmoDB where they are at hand; never trained on."""
    found = []
    for path in sorted((assets() / "emodb").glob("*.flac")):
        emotion = _EMODB.get(path.stem[5])
        if emotion:
            samples, rate_hz = soundfile.read(path, dtype="float32")
            found.append((soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ), emotion))
    return found


def main() -> None:
    """Print and record."""
    torch.set_num_threads(1)
    classify, clips = Classifier(), bank(HELDOUT)
    counts = {
        language: confusion(
            classify,
            [(clip.waveform, clip.emotion) for clip in clips if clip.language == language],
        )
        for language in LANGUAGES
    }
    whole = sum(counts.values(), np.zeros_like(counts["ru"]))
    silence = classify(np.zeros(SAMPLE_RATE_HZ, np.float32))
    figures: dict[str, Any] = {
        "utterances": len(clips),
        "accuracy": accuracy(whole),
        "bar_accuracy": BAR_ACCURACY,
        "accuracy_ru": accuracy(counts["ru"]),
        "accuracy_en": accuracy(counts["en"]),
        "confusion": whole.tolist(),
        "word_accuracy": accuracy(confusion(classify, spoken_words(clips))),
        "emodb_accuracy": accuracy(confusion(classify, acted_german())),
        "silence": {name: round(float(p), 3) for name, p in zip(EMOTIONS, silence, strict=True)},
    }
    record(FOLDER / "metrics.json", **figures)
    print(FOLDER.name, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
