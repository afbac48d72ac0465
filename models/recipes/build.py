"""Make every demo model from nothing: ``python -m models.recipes.build``, or ``make models``.

Stages run as modules of their own, two at a time where they do not need each other; seeds and
budgets of processor seconds are fixed. The time of every stage is printed as it ends.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models.recipes.paths import REPOSITORY

Lane = tuple[str, ...]

# Lanes of one wave run side by side, stages of one lane one after another.
WAVES: tuple[tuple[Lane, ...], ...] = (
    (("bank",),),
    (
        ("whisper", "whisper_export", "demo_audio", "heldout"),
        ("ctc", "ctc_export", "emotion", "diarization"),
    ),
    (("evaluate", "nemo_layout"), ("evaluate_speakers",)),
    (("cards",),),
)


def run(stage: str, repository: Path = REPOSITORY) -> None:
    """Run one stage and print its wall and processor time."""
    started_s = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", f"models.recipes.{stage}"], cwd=repository) as it:
        _, status, usage = os.wait4(it.pid, 0)
        it.returncode = os.waitstatus_to_exitcode(status)
    wall_min = (time.monotonic() - started_s) / 60
    cpu_min = (usage.ru_utime + usage.ru_stime) / 60
    print(f"{stage}: {wall_min:.1f} min, processor {cpu_min:.1f} min", flush=True)
    if it.returncode:
        raise SystemExit(f"stage {stage} failed with exit status {it.returncode}")


def run_lane(lane: Lane) -> None:
    """Run the stages of a lane in order."""
    for stage in lane:
        run(stage)


def main() -> None:
    """Run every wave; a failed stage stops the build once its wave has ended."""
    started_s = time.monotonic()
    for lanes in WAVES:
        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(run_lane, lanes))
    print(f"all models: {(time.monotonic() - started_s) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
