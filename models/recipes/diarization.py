"""demo-pyannote and demo-diarization-light: train both networks, put the pipeline together, tune.

``python -m models.recipes.diarization`` does it all; each part also runs as a stage of its own.
"""

import itertools
import logging
import os
from typing import Any

import numpy as np
import torch
from pyannote.audio import Pipeline
from pyannote.core import Annotation

from models.recipes import embedding, light, speaker_segmentation
from models.recipes.diarization_trials import Diarize, Trial, diarized, error_rate, trials
from models.recipes.measurements import Stopwatch, record
from models.recipes.paths import DEMO
from models.recipes.pyannote_format import save_pipeline
from models.recipes.speech_bank import TRAIN, bank
from models.recipes.synth import SAMPLE_RATE_HZ

FOLDER = DEMO / "demo-pyannote"
SEED = 71
TRIALS = 12
SEGMENTATION_STEP = 0.2
MIN_PAUSE_S = 0.2
METHODS = ("centroid", "average")
THRESHOLDS = tuple(np.arange(0.3, 1.25, 0.075).round(3).tolist())
SMALLEST = (2, 4, 8, 12)

logger = logging.getLogger(__name__)


def load() -> Any:
    """The pipeline of the pack, with no hub and no telemetry."""
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    return Pipeline.from_pretrained(FOLDER)


def by_pipeline(pipeline: Any) -> Diarize:
    """The pipeline as a function of samples and, where known, the number of speakers."""

    def diarize(samples: np.ndarray, speakers: int | None) -> Annotation:
        file = {"waveform": torch.from_numpy(samples)[None], "sample_rate": SAMPLE_RATE_HZ}
        return pipeline(file, num_speakers=speakers).speaker_diarization

    return diarize


def tuned(pipeline: Any, tried: list[Trial]) -> dict[str, Any]:
    """The clustering with the lowest error on ``tried``, speakers unknown.

    Of settings that tie within a tenth of a point the one that takes most for a speaker is taken,
    as a stray window is none, and the middle threshold of those.
    """
    files = {
        id(trial.samples): {
            "waveform": torch.from_numpy(trial.samples)[None],
            "sample_rate": SAMPLE_RATE_HZ,
            "uri": trial.name,
        }
        for trial in tried
    }
    kept = {key: _networks(pipeline, file) for key, file in files.items()}

    def diarize(samples: np.ndarray, speakers: int | None) -> Annotation:
        segmentations, embeddings = kept[id(samples)]
        pipeline.get_segmentations = lambda *_, **__: segmentations
        pipeline.get_embeddings = lambda *_, **__: embeddings.copy()
        return pipeline(files[id(samples)], num_speakers=speakers).speaker_diarization

    scored: list[tuple[float, dict[str, Any]]] = []
    for method, smallest, threshold in itertools.product(METHODS, SMALLEST, THRESHOLDS):
        choice = {"method": method, "min_cluster_size": smallest, "threshold": threshold}
        pipeline.instantiate(
            {"clustering": choice, "segmentation": {"min_duration_off": MIN_PAUSE_S}}
        )
        found = diarized(diarize, tried, speakers_known=False)
        scored.append((error_rate(found, tried), choice))
        logger.info("%s DER %.2f %%", choice, 100 * scored[-1][0])
    best = min(error for error, _ in scored)
    ties = [choice for error, choice in scored if error <= best + 0.001]
    strict = max(ties, key=lambda choice: int(choice["min_cluster_size"]))
    kin = [
        choice
        for choice in ties
        if all(choice[key] == strict[key] for key in ("method", "min_cluster_size"))
    ]
    return kin[len(kin) // 2]


def _networks(pipeline: Any, file: dict[str, Any]) -> tuple[Any, np.ndarray]:
    segmentations = pipeline.get_segmentations(file)
    embeddings = pipeline.get_embeddings(file, segmentations, exclude_overlap=True)
    return segmentations, embeddings


def tune() -> None:
    """Write ``config.yaml`` with the clustering that suits conversations of the training voices."""
    torch.set_num_threads(1)
    watch = Stopwatch()
    start = {"method": "centroid", "min_cluster_size": 2, "threshold": 0.7}
    save_pipeline(FOLDER, start, SEGMENTATION_STEP, MIN_PAUSE_S)
    choice = tuned(load(), trials(bank(TRAIN), TRIALS, SEED))
    save_pipeline(FOLDER, choice, SEGMENTATION_STEP, MIN_PAUSE_S)
    record(FOLDER / "metrics.json", clustering=choice, tuning_cpu_s=watch.seconds())


def main() -> None:
    """Train, assemble, tune, export."""
    speaker_segmentation.main()
    embedding.main()
    tune()
    light.main()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
