"""The options and the clocks that all rows of :mod:`benchmarks.whisper` share."""

import json
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speech.audio import SAMPLE_RATE, Samples
from speech.ports import TranscribeOptions

CLIP_S = 30
TOKENS = 36
PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
LONGEST = 2 * TOKENS
"""Of a window with its prompt: CTranslate2 decodes half of it at most."""

OPTIONS = {
    "language": "en",
    "beam_size": 5,
    "temperature": (0.0,),
    "compression_ratio_threshold": None,
    "log_prob_threshold": None,
    "no_speech_threshold": None,
    "condition_on_previous_text": False,
    "without_timestamps": True,
    "word_timestamps": False,
    "max_new_tokens": LONGEST - len(PROMPT),
}
"""Of the library, the engine and the service alike: one pass of every window, of TOKENS tokens."""
FILE_OPTIONS = {**OPTIONS, "vad_filter": True, "batch_size": 16}
CLIP = TranscribeOptions(**OPTIONS)  # type: ignore[arg-type]
FILE = TranscribeOptions(**FILE_OPTIONS)  # type: ignore[arg-type]


def cut(samples: Samples, seconds: int, count: int) -> list[Samples]:
    """``count`` pieces of that length, from the start on, and over again where it ends."""
    whole = len(samples) // (seconds * SAMPLE_RATE)
    size = seconds * SAMPLE_RATE
    return [samples[n % whole * size : (n % whole + 1) * size] for n in range(count)]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: seconds of audio in seconds of wall time.

    ``latency_s`` is the median of one call, in seconds.
    """

    name: str
    audio_s: float
    wall_s: float
    latency_s: float
    note: str = ""

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second."""
        return self.audio_s / self.wall_s


@dataclass
class Report:
    """Prints each row, and keeps all in a JSON file, so that nothing is lost if it is ended."""

    path: Path | None
    facts: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Print a row."""
        self.rows[row.name] = row
        print(
            f"{row.name:<58}{row.rtfx:>9.1f}{row.latency_s:>10.3f}  {row.note}".rstrip(), flush=True
        )
        self._write()

    def ratio(self, name: str, value: float, target: str) -> None:
        """Print a ratio of rows."""
        self.facts.setdefault("ratios", {})[name] = value
        print(f"{name:<70}{value:>7.2f}  target {target}", flush=True)
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            rows = [asdict(row) | {"rtfx": row.rtfx} for row in self.rows.values()]
            text = json.dumps({**self.facts, "rows": rows}, indent=1)
            self.path.write_text(text + "\n", "utf-8")


def repeated(name: str, audio_s: float, work: Callable[[], object], seconds: float) -> Row:
    """The same work again and again for that long, after once to warm up."""
    work()
    took: list[float] = []
    began = time.perf_counter()
    while not took or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return Row(name, audio_s * len(took), sum(took), statistics.median(took))


def by_callers(
    name: str, count: int, call: Callable[[int], object], seconds: float, note: str = ""
) -> Row:
    """``count`` callers of clips for that long, each with the next clip as soon as it has the last.

    ``call`` transcribes the clip of a number. All begin together, after one call each to warm up.
    """
    ready = threading.Barrier(count)

    def caller(first: int) -> tuple[float, float, list[float]]:
        call(first)
        ready.wait()
        began = time.perf_counter()
        took: list[float] = []
        while not took or time.perf_counter() - began < seconds:
            started = time.perf_counter()
            call(first + count * len(took))
            took.append(time.perf_counter() - started)
        return began, time.perf_counter(), took

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(caller, range(count)))
    calls = [took for _, _, each in found for took in each]
    wall = max(ended for _, ended, _ in found) - min(began for began, _, _ in found)
    return Row(name, CLIP_S * len(calls), wall, statistics.median(calls), note)
