"""Speed of voice activity detection: the batched network against the published one.

``python -m benchmarks.vad_speed`` infers the same windows of speech with both on one thread, three
windows of each stream at a time, as a live frame of 100 ms completes them. It prints microseconds
per window and the ratio of the two, each the median of seven rounds in alternation.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from faster_whisper.vad import get_vad_model

from benchmarks.speech_track import Track
from engines.vad.silero_network import CONTEXT_SAMPLES, SileroNetwork, initial_state
from speech.media.segmentation import WINDOW_SAMPLES

STREAMS = (1, 8, 64)
WINDOWS = 3
CALLS = 40
ROUNDS = 7


def seconds(work: Callable[[], object]) -> float:
    """How long so many calls take."""
    began = time.perf_counter()
    for _ in range(CALLS):
        work()
    return time.perf_counter() - began


def main() -> None:
    """Compare and print."""
    ours, published = SileroNetwork(), get_vad_model().session
    size = CONTEXT_SAMPLES + WINDOW_SAMPLES
    speech = Track.of_heldout().samples(60).astype(np.float32) / 32768
    print("streams | published, µs a window | ours | ours ÷ published")
    for streams in STREAMS:
        windows = np.resize(speech, (WINDOWS, streams, size))
        memory, alone = initial_state(streams), initial_state()

        def one_by_one(windows: np.ndarray = windows, memory: np.ndarray = alone) -> None:
            for stream in range(windows.shape[1]):
                feeds = {"input": windows[:, stream], "h": memory[:1], "c": memory[1:]}
                published.run(None, feeds)

        def together(windows: np.ndarray = windows, memory: np.ndarray = memory) -> None:
            ours.infer(windows, memory)

        rounds = [(seconds(one_by_one), seconds(together)) for _ in range(ROUNDS)]
        each = 1e6 / (CALLS * WINDOWS * streams)
        theirs_us = statistics.median(theirs for theirs, _ in rounds) * each
        ours_us = statistics.median(mine for _, mine in rounds) * each
        ratio = statistics.median(mine / theirs for theirs, mine in rounds)
        print(f"{streams:7} | {theirs_us:22.1f} | {ours_us:4.1f} | {ratio:.2f}")


if __name__ == "__main__":
    main()
