"""Generated conversations for tuning and for measuring diarization, and the error rate on them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from pyannote.core import Annotation, Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate

from models.recipes.acoustics import with_noise
from models.recipes.dialogues import Manners, by_speaker, cast, converse
from models.recipes.speech_bank import LANGUAGES, Clip
from models.recipes.synth import SAMPLE_RATE_HZ

COLLAR_S = 0.25
_MANNERS = Manners(keep_floor=0.25, overlap=0.12, longest_overlap_s=0.8, longest_pause_s=1.0)

Diarize = Callable[[np.ndarray, int | None], Annotation]


@dataclass(frozen=True)
class Trial:
    """A conversation and its reference."""

    name: str
    samples: np.ndarray
    reference: Annotation
    speakers: int


def trials(clips: list[Clip], count: int, seed: int, duration_s: float = 40.0) -> list[Trial]:
    """Conversations of two random different speakers, every mood, light noise in every other pair.

    Pairs are drawn without regard to gender, so about half of them share it; languages alternate.
    """
    rng = np.random.default_rng(seed)
    voices = by_speaker(clips)
    made = []
    for number in range(count):
        ending = f"-{LANGUAGES[number % len(LANGUAGES)]}"
        own = {name: spoken for name, spoken in voices.items() if name.endswith(ending)}
        made.append(_trial(own, number, rng, duration_s))
    return made


def _trial(
    voices: dict[str, list[Clip]], number: int, rng: np.random.Generator, duration_s: float
) -> Trial:
    roles = cast(voices, 2, rng, throats=(1.0,))
    dialogue = converse(roles, rng, duration_s, _MANNERS)
    samples = dialogue.samples
    if number // len(LANGUAGES) % 2:
        samples = with_noise(samples, float(rng.uniform(15.0, 30.0)), rng)
    name = "-".join([f"{number:02d}", *(role.name for role in roles)])
    return Trial(name, samples.astype(np.float32), annotation(dialogue.stretches()), len(roles))


def annotation(stretches: Iterable[tuple[float, float, str]]) -> Annotation:
    """A pyannote annotation of (start, end, speaker)."""
    made = Annotation()
    for number, (start_s, end_s, speaker) in enumerate(stretches):
        made[Segment(start_s, end_s), number] = speaker
    return made


def diarized(diarize: Diarize, tried: list[Trial], speakers_known: bool) -> list[Annotation]:
    """What a diarizer makes of each trial."""
    return [diarize(t.samples, t.speakers if speakers_known else None) for t in tried]


def error_rate(found: list[Annotation], tried: list[Trial], collar_s: float = COLLAR_S) -> float:
    """Diarization error rate over all trials; ``collar_s`` is left out around each boundary."""
    metric = DiarizationErrorRate(collar=collar_s)
    for trial, hypothesis in zip(tried, found, strict=True):
        extent = Timeline([Segment(0.0, len(trial.samples) / SAMPLE_RATE_HZ)])
        metric(trial.reference, hypothesis, uem=extent)
    return float(abs(metric))
