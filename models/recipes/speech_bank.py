"""The generated speech that the emotion and speaker recipes share: every voice in every mood.

A *speaker* is one espeak variant; each of its *takes* has its own pitch and rate. The bank of one
split is made once and kept under ``models/work`` until its recipe changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.recipes import grammar, synth
from models.recipes.grammar import Split
from models.recipes.paths import WORK
from models.recipes.synth import EMOTIONS, SAMPLE_RATE_HZ, Language, Span

LANGUAGES: tuple[Language, ...] = ("ru", "en")
_EDGE_S = 0.08
_SCALE = 32767.0


@dataclass(frozen=True)
class Clip:
    """One spoken sentence with the labels that matter here; samples are int16 at 16 kHz."""

    speaker: str
    take: int
    language: Language
    emotion: str
    samples: np.ndarray
    words: tuple[Span, ...]
    text: str

    @property
    def waveform(self) -> np.ndarray:
        """The samples as float32 in [-1, 1]."""
        return self.samples.astype(np.float32) / _SCALE

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class BankRecipe:
    """How much of which voices a bank holds."""

    split: Split
    takes: int
    sentences: int
    seed: int


TRAIN = BankRecipe(split="train", takes=2, sentences=4, seed=11)
HELDOUT = BankRecipe(split="heldout", takes=2, sentences=4, seed=12)


def bank(recipe: BankRecipe) -> list[Clip]:
    """All clips of a recipe, from the work folder when they are there."""
    path = WORK / f"bank-{recipe.split}-{recipe.takes}x{recipe.sentences}-{recipe.seed}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, list(_clips(recipe)))
    return _load(path)


def _clips(recipe: BankRecipe) -> Iterator[Clip]:
    rng = np.random.default_rng(recipe.seed)
    for language in LANGUAGES:
        names = _names(language, recipe.split)
        speakers = sorted({name.partition("+")[2] for name in names})
        per_mood = recipe.sentences
        count = len(speakers) * recipe.takes * len(EMOTIONS) * per_mood
        texts = iter(grammar.sentences(language, recipe.split, count, recipe.seed))
        for speaker in speakers:
            own = [name for name in names if name.partition("+")[2] == speaker]
            for take in range(recipe.takes):
                voice = synth.random_voice(language, own, rng)
                for emotion in EMOTIONS:
                    for _ in range(per_mood):
                        styled = synth.styled(voice, emotion, rng)
                        spoken = trimmed(synth.speak(next(texts), styled))
                        yield _clip(spoken, speaker, take, emotion)


def trimmed(spoken: synth.Utterance) -> synth.Utterance:
    """The utterance with a short edge of silence left before and after its words."""
    begin_s = max(spoken.words[0][1] - _EDGE_S, 0.0)
    end_s = spoken.words[-1][2] + _EDGE_S
    first, last = round(begin_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)
    return synth.Utterance(
        samples=spoken.samples[first:last],
        words=tuple((word, start - begin_s, end - begin_s) for word, start, end in spoken.words),
        phonemes=(),
        text=spoken.text,
        voice=spoken.voice,
    )


def _clip(spoken: synth.Utterance, speaker: str, take: int, emotion: str) -> Clip:
    pcm = np.round(spoken.samples * _SCALE).astype(np.int16)
    language = spoken.voice.language
    return Clip(speaker, take, language, emotion, pcm, spoken.words, spoken.text)


def _names(language: Language, split: Split) -> list[str]:
    return synth.train_voices(language) if split == "train" else synth.heldout_voices(language)


def _save(path: Path, clips: list[Clip]) -> None:
    np.savez(
        path,
        pcm=np.concatenate([clip.samples for clip in clips]),
        lengths=np.array([len(clip.samples) for clip in clips]),
        labels=np.array(
            [
                (clip.speaker, clip.take, clip.language, clip.emotion, clip.words, clip.text)
                for clip in clips
            ],
            dtype=object,
        ),
    )


def _load(path: Path) -> list[Clip]:
    stored = np.load(path, allow_pickle=True)
    pieces = np.split(stored["pcm"], np.cumsum(stored["lengths"])[:-1])
    return [
        Clip(speaker, take, language, emotion, pcm, words, text)
        for pcm, (speaker, take, language, emotion, words, text) in zip(
            pieces, stored["labels"], strict=True
        )
    ]
