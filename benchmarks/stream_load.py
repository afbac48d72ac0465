"""Load of live streams on a server: probes, the search for the most streams, soak, rejections."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace

import numpy as np
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from benchmarks.benchmark_server import FULL, cpu_s, resident_mb, usage
from benchmarks.stream_clients import ClientOptions, Measurements, run_clients

MOST_LAG_S = 1.0
MOST_LATE_S = 0.1
"""Clients that send later than this measure themselves."""
STARTS_PER_S = 40
SETTLE_S = 4.0
TOLERANCE = 0.04
SOAK_ROUND_S = 60.0
WARM_UP_SHARE = 0.2
REFUSALS_S = 15.0


@dataclass(frozen=True)
class Load:
    """What all probes of one run share; ``options`` without the numbers and times of streams."""

    options: ClientOptions
    pool: ProcessPoolExecutor
    processes: int
    root: int | None
    seconds: float


def plans(load: Load, numbers: Sequence[int], seconds: float) -> list[ClientOptions]:
    """The options of each client process; all streams run during ``seconds``, the steady time."""
    begin = time.monotonic() + 3.0
    settled = begin + len(numbers) / STARTS_PER_S + SETTLE_S
    plan = replace(
        load.options,
        seconds=settled + seconds - begin,  # the first stops where the steady time ends
        steady=(settled, settled + seconds),
    )
    starts = [begin + place / STARTS_PER_S for place in range(len(numbers))]
    every = load.processes
    return [
        replace(plan, numbers=tuple(numbers[first::every]), starts=tuple(starts[first::every]))
        for first in range(every)
    ]


def probe(load: Load, streams: int, seconds: float) -> tuple[Measurements, Counter[str]]:
    """Measurements of so many streams, and the cores that the server used."""
    planned = plans(load, range(streams), seconds)
    jobs = [load.pool.submit(run_clients, options) for options in planned]
    used: Counter[str] = Counter()
    for sign, when in zip((-1, 1), planned[0].steady, strict=True):
        time.sleep(max(when - time.monotonic(), 0.0))
        if load.root is not None:
            for title, spent in usage(load.root, cpu_s).items():
                used[title] += sign * spent / seconds  # type: ignore[assignment]
    total = Measurements()
    for job in jobs:
        measured = job.result()
        for each in fields(Measurements):
            mine, more = getattr(total, each.name), getattr(measured, each.name)
            setattr(total, each.name, mine + more)
    total.cpu_s /= seconds
    if load.options.model == FULL:
        total.words.clear()
        total.firsts.clear()
    return total, used


def passes(measured: Measurements) -> bool:
    """Whether the server kept up with so many streams, and the clients with their sending."""
    return (
        not measured.failures
        and percentile(measured.lags, 95) <= MOST_LAG_S
        and percentile(measured.late, 95) <= MOST_LATE_S
    )


def percentile(values: list[float], share: float) -> float:
    """A percentile, infinite without values."""
    return float(np.percentile(values, share)) if values else math.inf


def largest(load: Load, first: int, most: int) -> int:
    """The largest number of streams that passes: doubling, then bisection."""
    good, bad, streams = 0, most + 1, first
    while bad - good > max(1, good * TOLERANCE):
        measured, used = probe(load, streams, load.seconds)
        good, bad = (streams, bad) if passes(measured) else (good, streams)
        print(row(streams, measured, used), flush=True)
        streams = min(2 * streams, most) if bad > most else (good + bad) // 2
    return good


HEADER = (
    "streams ok |  lag p50   p95 | word p50   p95 | first p50  p95 | final p50  p95 "
    "| CPU/stream | server (its processes), clients: cores | late p95"
)


def row(streams: int, measured: Measurements, used: Counter[str]) -> str:
    """One probe as a line, seconds."""
    pairs = [
        f"{percentile(values, 50):8.3f} {percentile(values, 95):6.3f}" if values else f"{'–':>15}"
        for values in (measured.lags, measured.words, measured.firsts, measured.finals)
    ]
    cores = used.total()
    parts = ", ".join(f"{title} {spent:.2f}" for title, spent in used.most_common(4))
    failed = (
        f" {len(measured.failures)} failed: {measured.failures[0]}" if measured.failures else ""
    )
    return (
        f"{streams:7d} {'ok' if passes(measured) else 'no'} |{' |'.join(pairs)} "
        f"| {100 * cores / streams:8.2f} % | {cores:.2f} ({parts}), {measured.cpu_s:.2f} "
        f"| {percentile(measured.late, 95):.3f}{failed}"
    )


def soak(load: Load, streams: int, minutes: float) -> None:
    """Print the growth of the server's memory by kind of process, by least squares.

    So many streams run all the time, and as many more begin and end every minute.
    """
    assert load.root is not None
    begin = time.monotonic()
    lasting = plans(replace(load, processes=1), range(streams, 2 * streams), 60 * minutes)
    job = load.pool.submit(run_clients, lasting[0])
    samples: list[tuple[float, Counter[str]]] = []
    failures: list[str] = []
    while time.monotonic() < lasting[0].steady[1] - SOAK_ROUND_S - 10:
        measured, _ = probe(load, streams, SOAK_ROUND_S)
        failures += measured.failures
        samples.append((time.monotonic() - begin, usage(load.root, resident_mb)))
        print(f"{samples[-1][0] / 60:5.1f} min  {samples[-1][1].total():7.1f} MB", flush=True)
    failures += job.result().failures
    kept = samples[math.floor(len(samples) * WARM_UP_SHARE) :]
    hours = np.array([at for at, _ in kept]) / 3600
    for title in ("all", *sorted({title for _, memory in kept for title in memory})):
        values = [m.total() if title == "all" else m[title] for _, m in kept]
        slope = np.polyfit(hours, values, 1)[0]
        print(f"{title:8s} {values[0]:8.1f} → {values[-1]:8.1f} MB, {slope:+7.1f} MB per hour")
    total = f"{streams} lasting streams, {len(samples) * streams} of a minute"
    print(f"{total}, {len(failures)} failed: {dict(Counter(failures))}")


def refusals(load: Load, streams: int) -> None:
    """Print how long a full replica takes to reject one more stream with 503, from connecting."""
    (lasting,) = plans(replace(load, processes=1), range(streams), REFUSALS_S)
    job = load.pool.submit(run_clients, lasting)
    time.sleep(max(lasting.steady[0] - time.monotonic(), 0.0))
    took_ms: list[float] = []
    while time.monotonic() < lasting.steady[1] - 1:
        began = time.monotonic()
        try:
            connect(lasting.url + lasting.protocol().path, proxy=None).close()
        except InvalidStatus as refusal:
            if refusal.response.status_code != 503:
                raise
            took_ms.append(1000 * (time.monotonic() - began))
        else:
            raise SystemExit("one more stream was admitted")
        time.sleep(0.1)
    failed = job.result().failures
    print(
        f"{len(took_ms)} rejected beside {streams} streams ({len(failed)} failed): "
        f"p50 {percentile(took_ms, 50):.1f} ms, p95 {percentile(took_ms, 95):.1f} ms, "
        f"longest {max(took_ms):.1f} ms"
    )
