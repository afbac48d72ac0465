"""The bank of spoken sentences that every recogniser is trained on.

``build`` speaks a few thousand sentences per language on every core and keeps samples, word times
and phoneme times in two files; ``load`` gives them back as clips over one memory map.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.recipes.digits import digit_recordings
from models.recipes.grammar import sentences
from models.recipes.paths import WORK
from models.recipes.synth import EMOTIONS, Language, Span, random_voice, speak, styled, train_voices

SENTENCES_PER_LANGUAGE = 10_000
_STYLED_SHARE = 0.35
_CHUNK = 250
_SEED = 20


@dataclass(frozen=True)
class Clip:
    """One spoken sentence or one recorded digit; ``samples`` are int16 at 16 kHz."""

    samples: np.ndarray
    language: Language
    text: str
    voice: str
    words: tuple[Span, ...]
    phonemes: tuple[Span, ...]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / 16_000


def build(folder: Path = WORK) -> None:
    """Speak the training sentences and write ``bank.npy`` and ``bank.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    samples: list[np.ndarray] = []
    with (folder / "bank.jsonl").open("w", encoding="utf-8") as index:
        for clip in _clips():
            samples.append(clip.samples)
            record = {name: value for name, value in vars(clip).items() if name != "samples"}
            record["length"] = len(clip.samples)
            index.write(json.dumps(record, ensure_ascii=False) + "\n")
    np.save(folder / "bank.npy", np.concatenate(samples))
    print(f"bank: {len(samples)} clips in {time.monotonic() - started_s:.0f} s", flush=True)


def load(folder: Path = WORK) -> list[Clip]:
    """Clips of a built bank."""
    samples = np.load(folder / "bank.npy", mmap_mode="r")
    clips: list[Clip] = []
    offset = 0
    with (folder / "bank.jsonl").open(encoding="utf-8") as index:
        for line in index:
            record = json.loads(line)
            length = record.pop("length")
            for name in ("words", "phonemes"):
                record[name] = tuple((label, start, end) for label, start, end in record[name])
            clips.append(Clip(samples=samples[offset : offset + length], **record))
            offset += length
    return clips


def _clips() -> Iterator[Clip]:
    jobs: list[tuple[Language, list[str], int]] = []
    languages: tuple[Language, ...] = ("ru", "en")
    for language in languages:
        texts = sentences(language, "train", SENTENCES_PER_LANGUAGE, _SEED)
        for start in range(0, len(texts), _CHUNK):
            jobs.append((language, texts[start : start + _CHUNK], _SEED + len(jobs)))
    with ProcessPoolExecutor() as pool:
        for clips in pool.map(_speak_chunk, *zip(*jobs, strict=True)):
            yield from clips
    for recording in digit_recordings("train"):
        span = (recording.word, 0.0, len(recording.samples) / 16_000)
        yield Clip(recording.samples, "en", recording.word, recording.speaker, (span,), ())


def _speak_chunk(language: Language, texts: list[str], seed: int) -> list[Clip]:
    rng = np.random.default_rng(seed)
    names = train_voices(language)
    clips: list[Clip] = []
    for text in texts:
        voice = random_voice(language, names, rng)
        if rng.random() < _STYLED_SHARE:
            voice = styled(voice, EMOTIONS[int(rng.integers(len(EMOTIONS)))], rng)
        spoken = speak(text, voice)
        pcm = np.round(spoken.samples * 32767).astype(np.int16)
        clips.append(Clip(pcm, language, text, voice.variant, spoken.words, spoken.phonemes))
    return clips


if __name__ == "__main__":
    build()
