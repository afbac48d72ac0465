"""Conversations laid out from single-speaker clips, with exact turns.

``converse(cast(by_speaker(clips), 2, rng), rng, duration_s=30.0)`` is half a minute of two people.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from models.recipes.acoustics import other_throat, rms
from models.recipes.speech_bank import Clip
from models.recipes.synth import SAMPLE_RATE_HZ, Span

THROATS = (0.87, 1.0, 1.15)
PAUSE_S = 0.35
_LEVEL = 0.07


@dataclass(frozen=True)
class Turn:
    """One stretch of one speaker; times are seconds in the dialogue."""

    speaker: str
    start_s: float
    end_s: float
    text: str
    emotion: str
    words: tuple[Span, ...]

    def stretches(self) -> list[tuple[float, float]]:
        """The times of speech: words joined over pauses shorter than ``PAUSE_S``."""
        joined: list[tuple[float, float]] = []
        for _, start_s, end_s in self.words:
            if joined and start_s - joined[-1][1] < PAUSE_S:
                joined[-1] = (joined[-1][0], end_s)
            else:
                joined.append((start_s, end_s))
        return joined


@dataclass(frozen=True)
class Dialogue:
    """Mixed speech, mono float32 at 16 kHz, and its turns."""

    samples: np.ndarray
    turns: tuple[Turn, ...]

    def stretches(self) -> list[tuple[float, float, str]]:
        """(start, end, speaker) of all speech."""
        return [
            (start_s, end_s, turn.speaker)
            for turn in self.turns
            for start_s, end_s in turn.stretches()
        ]


@dataclass(frozen=True)
class Manners:
    """How people talk with each other."""

    keep_floor: float = 0.25
    overlap: float = 0.2
    longest_overlap_s: float = 1.5
    longest_pause_s: float = 1.2


class Role:
    """A speaker of one dialogue: its clips, vocal tract factor and level."""

    def __init__(self, name: str, clips: list[Clip], throat: float, level: float) -> None:
        self.name = name
        self._clips = clips
        self._throat = throat
        self._level = level

    def next_clip(self, rng: np.random.Generator) -> tuple[np.ndarray, Clip, float]:
        """A random clip in this role's voice; word times stretch by the returned factor."""
        clip = self._clips[int(rng.integers(len(self._clips)))]
        samples = clip.waveform
        if self._throat != 1.0:
            samples = other_throat(samples, self._throat)
        gain = self._level / max(rms(clip.waveform), 1e-4)
        return gain * samples, clip, 1.0 / self._throat


def by_speaker(clips: list[Clip]) -> dict[str, list[Clip]]:
    """Clips of each speaker and take: one person keeps one pitch through a dialogue."""
    found: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        found[f"{clip.speaker}-{clip.take}-{clip.language}"].append(clip)
    return dict(found)


def cast(
    voices: dict[str, list[Clip]],
    count: int,
    rng: np.random.Generator,
    throats: tuple[float, ...] = THROATS,
) -> list[Role]:
    """``count`` roles of different speakers of one language, at levels that differ."""
    names = sorted(voices)
    language = names[int(rng.integers(len(names)))].rsplit("-", 1)[1]
    names = [name for name in names if name.endswith(f"-{language}")]
    chosen: dict[str, str] = {}
    while len(chosen) < count:
        name = names[int(rng.integers(len(names)))]
        chosen.setdefault(name.split("-")[0], name)
    return [
        Role(
            name,
            voices[name],
            throat=float(rng.choice(throats)),
            level=_LEVEL * 10 ** (rng.uniform(-6.0, 6.0) / 20),
        )
        for name in chosen.values()
    ]


def converse(
    roles: list[Role],
    rng: np.random.Generator,
    duration_s: float,
    manners: Manners = Manners(),
) -> Dialogue:
    """A conversation of about ``duration_s``; everyone speaks, in random turns."""
    canvas = np.zeros(round((duration_s + 12.0) * SAMPLE_RATE_HZ), np.float32)
    turns: list[Turn] = []
    speaking, cursor_s, end_s = roles[0], float(rng.uniform(0.0, 0.8)), 0.0
    while cursor_s < duration_s:
        samples, clip, stretch = speaking.next_clip(rng)
        first = round(cursor_s * SAMPLE_RATE_HZ)
        canvas[first : first + len(samples)] += samples[: len(canvas) - first]
        turns.append(_turn(speaking.name, clip, cursor_s, stretch))
        end_s = max(end_s, cursor_s + len(samples) / SAMPLE_RATE_HZ)
        cursor_s, speaking = _next(roles, speaking, turns[-1], end_s, manners, rng)
    return Dialogue(canvas[: round(end_s * SAMPLE_RATE_HZ)], tuple(turns))


def _turn(speaker: str, clip: Clip, start_s: float, stretch: float) -> Turn:
    words = tuple(
        (word, start_s + begin_s * stretch, start_s + end_s * stretch)
        for word, begin_s, end_s in clip.words
    )
    return Turn(speaker, words[0][1], words[-1][2], clip.text, clip.emotion, words)


def _next(
    roles: list[Role],
    speaking: Role,
    last: Turn,
    end_s: float,
    manners: Manners,
    rng: np.random.Generator,
) -> tuple[float, Role]:
    if len(roles) == 1 or rng.random() < manners.keep_floor:
        return end_s + float(rng.uniform(0.1, manners.longest_pause_s)), speaking
    others = [role for role in roles if role is not speaking]
    follower = others[int(rng.integers(len(others)))]
    if rng.random() < manners.overlap:
        share = min(manners.longest_overlap_s, 0.6 * (last.end_s - last.start_s))
        return max(last.end_s - float(rng.uniform(0.1, share)), last.start_s + 0.2), follower
    return end_s + float(rng.uniform(0.05, manners.longest_pause_s)), follower
