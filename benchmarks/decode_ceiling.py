"""The ceiling of the machine: what the bare streaming engine decodes on all cores."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from benchmarks.speech_track import RATE, Track
from configs.catalogue import REPOSITORY_ROOT, ModelEntry

CORES = os.cpu_count() or 1
BATCHES = (1, 8, 32, 128)
DECODE_S = 4.0
UTTERANCE_S = 10
STEP_S = 0.16


def process_pool(processes: int, **options: Any) -> ProcessPoolExecutor:
    """Processes that inherit nothing from this one."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), **options)


@cache
def _engine(entry_json: str) -> Any:
    from engines.onnx_asr.streaming import StreamingEngine

    entry = ModelEntry.model_validate_json(entry_json)
    assert entry.source.path is not None
    return StreamingEngine(entry, REPOSITORY_ROOT / entry.source.path, device="cpu", threads=1)


def decode_rate(entry_json: str, streams: int, start: float) -> float:
    """Seconds of audio that one process decodes per second, in batches of ``streams`` streams."""
    from engines.onnx_asr.streaming import Step

    engine = _engine(entry_json)
    track = Track.of_heldout()
    audio = track.samples(UTTERANCE_S).astype(np.float32) / np.float32(32768)
    size = round(STEP_S * RATE)
    pieces = [audio[first : first + size] for first in range(0, len(audio), size)]
    states = [engine.open() for _ in range(streams)]
    time.sleep(max(start - time.monotonic(), 0.0))
    began, steps = time.monotonic(), 0
    while (spent := time.monotonic() - began) < DECODE_S:
        # Each stream is at another position of its utterance.
        positions = [(steps + number) % len(pieces) for number in range(streams)]
        engine.step(
            [
                Step(state, pieces[position], finish=position == len(pieces) - 1)
                for state, position in zip(states, positions, strict=True)
            ]
        )
        steps += 1
    return steps * streams * STEP_S / spent


def ceiling(entry: ModelEntry) -> tuple[float, float]:
    """Streams that this machine decodes in real time, one by one and in the best batch."""
    rates = {}
    with process_pool(CORES) as pool:
        for streams in (1, *BATCHES):  # the first loads the model
            start = time.monotonic() + 1.0
            jobs = [
                pool.submit(decode_rate, entry.model_dump_json(), streams, start)
                for _ in range(CORES)
            ]
            rates[streams] = sum(job.result() for job in jobs)
    best = max(rates, key=rates.__getitem__)
    by_batch = ", ".join(f"{streams}: {rate:.0f}" for streams, rate in rates.items())
    print(
        f"ceiling: {rates[best]:.0f} streams on {CORES} cores, RTF {CORES / rates[best]:.4f} "
        f"(by batch {by_batch})",
        flush=True,
    )
    return rates[1], rates[best]
