"""Held-out speech: unseen sentences by unseen voices, and a small committed part of it."""

import json
from dataclasses import dataclass

import numpy as np
import soundfile

from models.recipes.grammar import sentences
from models.recipes.paths import HELDOUT
from models.recipes.synth import (
    Language,
    Utterance,
    Voice,
    heldout_voices,
    random_voice,
    speak,
    styled,
)

LANGUAGES: tuple[Language, ...] = ("ru", "en")
SAMPLE_RATE_HZ = 16_000
_SEED = 30
_COMMITTED = 30
_LEAD_S, _TAIL_S = 0.2, 0.3


@dataclass(frozen=True)
class Reference:
    """A held-out utterance with quiet before and after; times count from its first sample."""

    samples: np.ndarray
    language: Language
    text: str
    words: tuple[tuple[str, float, float], ...]
    voice: Voice


def references(language: Language, count: int, emotion: str | None = None) -> list[Reference]:
    """``count`` utterances, always the same ones; in an emotional manner when one is named."""
    rng = np.random.default_rng(_SEED)
    names = heldout_voices(language)
    made: list[Reference] = []
    for text in sentences(language, "heldout", count, _SEED):
        voice = random_voice(language, names, rng)
        spoken = speak(text, styled(voice, emotion, rng) if emotion else voice)
        made.append(_padded(spoken))
    return made


def write() -> None:
    """The committed set: FLAC files and ``reference.jsonl`` beside them."""
    HELDOUT.mkdir(parents=True, exist_ok=True)
    with (HELDOUT / "reference.jsonl").open("w", encoding="utf-8") as index:
        for language in LANGUAGES:
            for number, reference in enumerate(references(language, _COMMITTED)):
                name = f"{language}-{number:02d}.opus"
                soundfile.write(
                    HELDOUT / name,
                    reference.samples,
                    SAMPLE_RATE_HZ,
                    format="OGG",
                    subtype="OPUS",
                    compression_level=0.9,
                )
                words = [
                    {"word": word, "start": round(start_s, 3), "end": round(end_s, 3)}
                    for word, start_s, end_s in reference.words
                ]
                record = {
                    "file": name,
                    "language": language,
                    "text": reference.text,
                    "duration": round(len(reference.samples) / SAMPLE_RATE_HZ, 3),
                    "words": words,
                    "voice": vars(reference.voice),
                }
                index.write(json.dumps(record, ensure_ascii=False) + "\n")


def _padded(spoken: Utterance) -> Reference:
    lead, tail = (np.zeros(int(s * SAMPLE_RATE_HZ), np.float32) for s in (_LEAD_S, _TAIL_S))
    words = tuple((word, start + _LEAD_S, end + _LEAD_S) for word, start, end in spoken.words)
    samples = np.concatenate([lead, spoken.samples, tail])
    return Reference(samples, spoken.voice.language, spoken.text, words, spoken.voice)


if __name__ == "__main__":
    write()
