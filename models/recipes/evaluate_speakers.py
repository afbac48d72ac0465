"""Figures of the emotion model and both diarizers, measured through the engines' own libraries.

``python -m models.recipes.evaluate_speakers`` prints them, writes each ``metrics.json``, and
renders the model cards and the overview of the pack.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from pyannote.core import Annotation
from pyannote.database.util import load_rttm

from models.recipes import cards, diarization, evaluate_emotion, light
from models.recipes.diarization_trials import (
    COLLAR_S,
    Diarize,
    Trial,
    diarized,
    error_rate,
    trials,
)
from models.recipes.measurements import record
from models.recipes.paths import DEMO, assets
from models.recipes.speech_bank import HELDOUT, bank
from models.recipes.synth import SAMPLE_RATE_HZ

SEED = 81
TRIALS = 16
BAR_DER = 10.0
_RECORDED = ("dialogue-ru.flac", "dialogue-en.flac", "meeting-10min.opus")

logger = logging.getLogger(__name__)


def der_figures(diarize: Diarize, tried: list[Trial]) -> dict[str, Any]:
    """Error rates in percent on generated conversations and on recordings."""

    def percent(found: list[Annotation], some: list[Trial], collar_s: float = COLLAR_S) -> float:
        return round(100 * error_rate(found, some, collar_s), 2)

    alone = diarized(diarize, tried, speakers_known=False)
    with_number = diarized(diarize, tried, speakers_known=True)
    figures: dict[str, Any] = {
        "conversations": len(tried),
        "collar_s": COLLAR_S,
        "der": percent(alone, tried),
        "der_speakers_known": percent(with_number, tried),
        "der_no_collar": percent(alone, tried, collar_s=0.0),
        "der_ru": percent(alone[0::2], tried[0::2]),
        "der_en": percent(alone[1::2], tried[1::2]),
        "speaker_count_right": sum(
            len(found.labels()) == trial.speakers for found, trial in zip(alone, tried, strict=True)
        ),
    }
    for trial in recordings():
        found = diarized(diarize, [trial], speakers_known=False)
        figures[f"der_{trial.name}"] = percent(found, [trial])
    return figures


def recordings() -> list[Trial]:
    """The demo recordings, and the real meeting excerpt where it is at hand."""
    found = [(Path(name).stem, DEMO / "audio" / name) for name in _RECORDED]
    sample = assets() / "diarization-ami" / "sample.wav"
    if sample.exists():
        found.append(("ami-sample", sample))
    return [_recording(name, path) for name, path in found]


def _recording(name: str, path: Path) -> Trial:
    samples, _ = soundfile.read(path, dtype="float32")
    reference = next(iter(load_rttm(path.with_suffix(".rttm")).values()))
    return Trial(name, samples, reference, len(reference.labels()))


def seconds_per_half_minute(diarize: Diarize, tried: list[Trial]) -> dict[str, float]:
    """Processor and wall seconds of one 30 s clip on one thread, after a warm-up."""
    samples = tried[0].samples[: 30 * SAMPLE_RATE_HZ]
    diarize(samples, None)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    diarize(samples, None)
    return {
        "cpu_s_per_30_s": round(time.process_time() - cpu_s, 2),
        "wall_s_per_30_s": round(time.perf_counter() - wall_s, 2),
    }


def evaluate_diarizers() -> None:
    """Measure both diarizers on the same conversations of held-out voices."""
    torch.set_num_threads(1)
    tried = trials(bank(HELDOUT), TRIALS, SEED)
    diarizers = {
        diarization.FOLDER: diarization.by_pipeline(diarization.load()),
        light.FOLDER: light.by_sherpa(light.THRESHOLD),
    }
    for folder, diarize in diarizers.items():
        figures = der_figures(diarize, tried) | seconds_per_half_minute(diarize, tried)
        record(folder / "metrics.json", bar_der=BAR_DER, **figures)
        print(folder.name, json.dumps(figures, indent=2))


def main() -> None:
    """Measure everything, then write cards and overview."""
    evaluate_emotion.main()
    evaluate_diarizers()
    cards.main()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
