"""Change of tempo at the same pitch, with FFmpeg's atempo filter."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from av.audio.frame import AudioFrame
from av.filter import Graph

from speech.audio import SAMPLE_RATE, Samples

SLOWEST, FASTEST = 0.25, 4.0
"""Bounds of ``speedup``."""

_LARGEST_STEP = 2.0
"""Above it atempo drops samples instead of blending them, so larger factors take several steps."""


def change_tempo(
    samples: Samples, speedup: float, expired: Callable[[], bool] = lambda: False
) -> Samples:
    """Mono float32 [samples] at 16 kHz, ``speedup`` times as fast and exactly that much shorter.

    Audio at ``t`` seconds moves to ``t / speedup``. ``expired`` is polled once per second of audio;
    once it returns True the rest of the result is silence.
    """
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=SAMPLE_RATE, format="flt", layout="mono", time_base=Fraction(1, SAMPLE_RATE)
    )
    steps = max(1, math.ceil(abs(math.log(speedup, _LARGEST_STEP))))
    filters = [graph.add("atempo", f"{speedup ** (1 / steps):.9f}") for _ in range(steps)]
    graph.link_nodes(source, *filters, graph.add("abuffersink")).configure()

    changed = np.zeros(round(len(samples) / speedup), np.float32)
    done = 0
    for start in [*range(0, len(samples), SAMPLE_RATE), None]:
        if start is None:
            graph.push(None)
        elif expired():
            break
        else:
            graph.push(_frame(samples[start : start + SAMPLE_RATE], start))
        while (frame := _next(graph)) is not None:
            block = frame.to_ndarray()[0][: len(changed) - done]
            changed[done : done + len(block)] = block
            done += len(block)
    return changed


def _frame(block: Samples, start: int) -> AudioFrame:
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(block[None]), format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    frame.pts = start
    return frame


def _next(graph: Graph) -> AudioFrame | None:
    try:
        frame = graph.pull()
    except (BlockingIOError, EOFError):  # needs more input, or is at its end
        return None
    assert isinstance(frame, AudioFrame)
    return frame
