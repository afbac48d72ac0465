"""How many live streams a server hears at once, and how soon it answers.

``python -m benchmarks.streams --model demo --placement local`` starts the graph with a
configuration of its own and loads it with real-time clients: 100 ms frames of the demo's held-out
sentences, looped, each stream from another place. The number of streams is doubled, then bisected,
for the largest with a 95th percentile of lag of at most one second and no stream that failed.
``--url ws://… --dialect …`` measures a server that runs already instead, this one or another.
``--minutes 30`` tells instead how the server's memory grows while ``--streams`` streams last and as
many more come and go every minute; ``--refusals`` how soon one more is refused while the one
ingress replica has all the ``--most`` streams that it may have.

All times are taken by the clients, from the moment a frame was handed to the socket, while all
streams run:

- *lag*: receipt of an answer − sending of the last audio that it covers. An answer of the native
  form (partial or progress) and of the v1 form (finals only: that they wait for the pause is in it)
  says what it covers; of the classic form the n-th covers the n-th frame; of sherpa-onnx the n-th
  covers the n-th chunk of the model (``--window-s`` and ``--shift-s``); of the Vosk 5 form only the
  words tell, so that there lag is the next figure;
- *word*: receipt of the first answer with a word − sending of the frame with the end of that word,
  as the reference has it: what a user feels, with the look-ahead and the chunk of the model in it;
- *first*: receipt of the first text of a sentence − sending of the frame where it begins to be
  spoken;
- *final*: receipt of the last answer − sending of the end, wherever in a sentence it came;
- *CPU per stream*: processor time of the server's process tree ÷ wall time ÷ streams, in percent of
  a core; the clients' own is told beside it, for they take it from the same machine;
- *ceiling*: streams that the bare engine decodes in real time, in as many processes as there are
  cores, all at once, of the same sentences without a pause, one by one (the cores ÷ its real-time
  factor) and in the batch that suits it best.

``--gap-s 3`` makes the audio like one side of a call, which is silent for more than half of it.

The untrained model of ``--model full`` (see ``full_size.py``) says words that nobody spoke: there
*word* and *first* are left out.
"""

import argparse
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from benchmarks.stream_clients import DIALECTS, GAP_S, RATE, Heard, Options, Track, prepare, speak
from configs.catalogue import CATALOGUE_PATH, REPOSITORY_ROOT, Catalogue, ModelEntry

CORES = os.cpu_count() or 1
MOST_LAG_S = 1.0
MOST_LATE_S = 0.1
"""Clients that send later than this measure themselves."""
STARTS_PER_S = 40
SETTLE_S = 4.0
TOLERANCE = 0.04
BATCHES = (1, 8, 32, 128)
DECODE_S = 4.0
UTTERANCE_S = 10
STEP_S = 0.16
SOAK_ROUND_S = 60.0
WARM_UP_SHARE = 0.2
REFUSALS_S = 15.0
FULL = "full-size"
MODELS = {"demo": "demo-vosk-streaming", "full": FULL}


# The server


def catalogue_with(folder: Path) -> Path:
    """A catalogue that also has the untrained model, written into ``folder`` with its files."""
    files = folder / FULL
    write = [sys.executable, "-m", "benchmarks.full_size", str(files)]
    subprocess.run(write, cwd=REPOSITORY_ROOT, check=True)
    models = yaml.safe_load(CATALOGUE_PATH.read_text(encoding="utf-8"))
    entry = {
        "id": FULL,
        "family": "vosk",
        "format": "streaming_nemo_ctc",
        "source": {"path": str(files)},
        "licence": "Apache-2.0",
        "memory_mb": 200,
    }
    models["models"].append(entry)
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(models, allow_unicode=True), encoding="utf-8")
    return path


def config(arguments: argparse.Namespace, catalogue: Path) -> dict[str, Any]:
    """A graph that hears live streams and does little else, of a fixed size."""

    def fixed(replicas: int, **more: Any) -> dict[str, Any]:
        return {
            "scaling": {"min_replicas": replicas, "max_replicas": replicas},
            "resources": {"num_cpus": 1},
            **more,
        }

    args = {
        "catalogue": str(catalogue),
        "offline": True,
        "ingress": fixed(
            arguments.ingresses,
            default_transcriber="demo-vosk",
            sessions={"max_sessions": arguments.most},
        ),
        "decoder": {"resources": {"num_cpus": 0.1}},
        "vosk": {
            "default_model": "demo-vosk",
            "device": "cpu",
            "resources": {"num_cpus": 0.1},
        },
        "live": fixed(
            arguments.recognisers,
            placement=arguments.placement,
            default_model=MODELS[arguments.model],
            device="cpu",
            max_streams=arguments.most,
        ),
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8800},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": "speech",
                "route_prefix": "/",
                "import_path": "graphs.speech:build",
                "args": args,
            }
        ],
    }


@contextmanager
def launched(config: Mapping[str, Any], folder: Path, haproxy: bool) -> Iterator[tuple[str, int]]:
    """The URL and the process id of a graph that runs within the context."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {
        **os.environ,
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if haproxy else "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # nobody balances the load here
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "graphs.launch", str(path)],
        cwd=REPOSITORY_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if line.split()[:1] == ["service"]:
                yield line.split()[1].replace("http", "ws", 1), server.pid
                break
        else:
            raise SystemExit("the graph did not come up")
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:  # Serve did not end in time
            for pid in list(tree(server.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            server.wait()


# What its processes use


def tree(root: int) -> Iterator[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text()
        except OSError:  # it has ended meanwhile
            continue
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    yield from found


def usage(root: int, value: Callable[[Path], float]) -> Counter[str]:
    """A figure of the process tree, by what its processes are."""
    total: Counter[str] = Counter()
    for pid in tree(root):
        folder = Path(f"/proc/{pid}")
        try:
            total[_title(folder)] += value(folder)  # type: ignore[assignment]
        except OSError:
            continue
    return total


def cpu_s(process: Path) -> float:
    """Processor time."""
    stat = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(process: Path) -> float:
    """Resident memory."""
    pages = int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _title(process: Path) -> str:
    command = (process / "cmdline").read_bytes().decode().replace("\0", " ")
    for name in ("Ingress", "Live", "haproxy", "Proxy", "Vosk", "Decoder"):
        if name in command:
            return name
    return "other"


# The machine's ceiling


@cache
def _engine(entry_json: str) -> Any:
    from engines.vosk.streaming import StreamingEngine

    entry = ModelEntry.model_validate_json(entry_json)
    assert entry.source.path is not None
    return StreamingEngine(entry, REPOSITORY_ROOT / entry.source.path, device="cpu", threads=1)


def decode(entry_json: str, streams: int, start: float) -> float:
    """Seconds of audio that one process decodes in one second, of as many streams together."""
    from engines.vosk.streaming import Step

    engine = _engine(entry_json)
    track = Track.of_heldout()
    audio = track.samples(UTTERANCE_S).astype(np.float32) / np.float32(32768)
    size = round(STEP_S * RATE)
    pieces = [audio[first : first + size] for first in range(0, len(audio), size)]
    states = [engine.open() for _ in range(streams)]
    time.sleep(max(start - time.monotonic(), 0.0))
    began, heard = time.monotonic(), 0
    while (spent := time.monotonic() - began) < DECODE_S:
        # Each stream is somewhere else in its utterance.
        turns = [(heard + number) % len(pieces) for number in range(streams)]
        engine.step(
            [
                Step(state, pieces[turn], finish=turn == len(pieces) - 1)
                for state, turn in zip(states, turns, strict=True)
            ]
        )
        heard += 1
    return heard * streams * STEP_S / spent


def ceiling(entry: ModelEntry) -> tuple[float, float]:
    """Streams that this machine could decode if it did nothing else, one by one and at best."""
    rates = {}
    with _pool(CORES) as pool:
        for streams in (1, *BATCHES):  # the first loads the model
            start = time.monotonic() + 1.0
            jobs = [
                pool.submit(decode, entry.model_dump_json(), streams, start) for _ in range(CORES)
            ]
            rates[streams] = sum(job.result() for job in jobs)
    best = max(rates, key=rates.__getitem__)
    told = ", ".join(f"{streams}: {rate:.0f}" for streams, rate in rates.items())
    print(
        f"ceiling: {rates[best]:.0f} streams on {CORES} cores, RTF {CORES / rates[best]:.4f} "
        f"(by batch {told})",
        flush=True,
    )
    return rates[1], rates[best]


# The load


@dataclass(frozen=True)
class Load:
    """What all probes of one run have in common; ``options`` lack who speaks when."""

    options: Options
    pool: ProcessPoolExecutor
    processes: int
    root: int | None
    seconds: float


def plans(load: Load, numbers: Sequence[int], seconds: float) -> list[Options]:
    """What each process of clients is to do; all streams run for ``seconds``, the steady time."""
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


def probe(load: Load, streams: int, seconds: float) -> tuple[Heard, Counter[str]]:
    """What so many streams heard, and the processor time of the server per second."""
    todo = plans(load, range(streams), seconds)
    jobs = [load.pool.submit(speak, options) for options in todo]
    used: Counter[str] = Counter()
    for sign, when in zip((-1, 1), todo[0].steady, strict=True):
        time.sleep(max(when - time.monotonic(), 0.0))
        if load.root is not None:
            for title, spent in usage(load.root, cpu_s).items():
                used[title] += sign * spent / seconds  # type: ignore[assignment]
    together = Heard()
    for job in jobs:
        heard = job.result()
        for each in fields(Heard):
            mine, more = getattr(together, each.name), getattr(heard, each.name)
            setattr(together, each.name, mine + more)
    together.cpu_s /= seconds
    if load.options.model == FULL:
        together.words.clear()
        together.firsts.clear()
    return together, used


def passes(heard: Heard) -> bool:
    """Whether so many streams are heard well."""
    return (
        not heard.failures
        and percentile(heard.lags, 95) <= MOST_LAG_S
        and percentile(heard.late, 95) <= MOST_LATE_S
    )


def percentile(values: list[float], share: float) -> float:
    """A percentile, infinite where there is nothing."""
    return float(np.percentile(values, share)) if values else math.inf


def largest(load: Load, first: int, most: int) -> int:
    """The largest number of streams that passes: doubling, then bisection."""
    good, bad, streams = 0, most + 1, first
    while bad - good > max(1, good * TOLERANCE):
        heard, used = probe(load, streams, load.seconds)
        good, bad = (streams, bad) if passes(heard) else (good, streams)
        print(row(streams, heard, used), flush=True)
        streams = min(2 * streams, most) if bad > most else (good + bad) // 2
    return good


HEADER = (
    "streams ok |  lag p50   p95 | word p50   p95 | first p50  p95 | final p50  p95 "
    "| CPU/stream | server (its processes), clients: cores | late p95"
)


def row(streams: int, heard: Heard, used: Counter[str]) -> str:
    """One probe as a line, seconds."""
    pairs = [
        f"{percentile(values, 50):8.3f} {percentile(values, 95):6.3f}" if values else f"{'–':>15}"
        for values in (heard.lags, heard.words, heard.firsts, heard.finals)
    ]
    cores = used.total()
    parts = ", ".join(f"{title} {spent:.2f}" for title, spent in used.most_common(4))
    failed = f" {len(heard.failures)} failed: {heard.failures[0]}" if heard.failures else ""
    return (
        f"{streams:7d} {'ok' if passes(heard) else 'no'} |{' |'.join(pairs)} "
        f"| {100 * cores / streams:8.2f} % | {cores:.2f} ({parts}), {heard.cpu_s:.2f} "
        f"| {percentile(heard.late, 95):.3f}{failed}"
    )


def soak(load: Load, streams: int, minutes: float) -> None:
    """The slope of the server's memory, by processes, least squares.

    So many streams last all the time, and as many come and go every minute.
    """
    assert load.root is not None
    begin = time.monotonic()
    lasting = plans(replace(load, processes=1), range(streams, 2 * streams), 60 * minutes)
    job = load.pool.submit(speak, lasting[0])
    samples: list[tuple[float, Counter[str]]] = []
    failures: list[str] = []
    while time.monotonic() < lasting[0].steady[1] - SOAK_ROUND_S - 10:
        heard, _ = probe(load, streams, SOAK_ROUND_S)
        failures += heard.failures
        samples.append((time.monotonic() - begin, usage(load.root, resident_mb)))
        print(f"{samples[-1][0] / 60:5.1f} min  {samples[-1][1].total():7.1f} MB", flush=True)
    failures += job.result().failures
    kept = samples[math.floor(len(samples) * WARM_UP_SHARE) :]
    hours = np.array([at for at, _ in kept]) / 3600
    for title in ("all", *sorted({title for _, memory in kept for title in memory})):
        values = [m.total() if title == "all" else m[title] for _, m in kept]
        slope = np.polyfit(hours, values, 1)[0]
        print(f"{title:8s} {values[0]:8.1f} → {values[-1]:8.1f} MB, {slope:+7.1f} MB per hour")
    told = f"{streams} lasting streams, {len(samples) * streams} of a minute"
    print(f"{told}, {len(failures)} failed: {dict(Counter(failures))}")


def refusals(load: Load, streams: int) -> None:
    """How long the 503 takes for one stream more than a full replica may have, from connecting."""
    (lasting,) = plans(replace(load, processes=1), range(streams), REFUSALS_S)
    job = load.pool.submit(speak, lasting)
    time.sleep(max(lasting.steady[0] - time.monotonic(), 0.0))
    took_ms: list[float] = []
    while time.monotonic() < lasting.steady[1] - 1:
        began = time.monotonic()
        try:
            connect(lasting.url + DIALECTS[lasting.dialect](lasting).path, proxy=None).close()
        except InvalidStatus as refusal:
            if refusal.response.status_code != 503:
                raise
            took_ms.append(1000 * (time.monotonic() - began))
        else:
            raise SystemExit("one more stream was taken")
        time.sleep(0.1)
    failed = job.result().failures
    print(
        f"{len(took_ms)} refused beside {streams} streams ({len(failed)} failed): "
        f"p50 {percentile(took_ms, 50):.1f} ms, p95 {percentile(took_ms, 95):.1f} ms, "
        f"longest {max(took_ms):.1f} ms"
    )


def _pool(processes: int, **options: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), **options)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="demo")
    parser.add_argument("--placement", choices=("local", "replicas"), default="local")
    parser.add_argument("--dialect", choices=DIALECTS, default="native")
    parser.add_argument("--haproxy", action="store_true", help="in front, as on a cluster")
    parser.add_argument("--ingresses", type=int, default=CORES, help="ingress replicas")
    parser.add_argument("--recognisers", type=int, default=CORES, help="live replicas")
    parser.add_argument("--url", help="of a server that runs already, ws://host:port")
    parser.add_argument("--pid", type=int, help="of that server, if it runs here")
    parser.add_argument("--seconds", type=float, default=30.0, help="measured of each probe")
    parser.add_argument("--first", type=int, default=16, help="streams of the first probe")
    parser.add_argument("--most", type=int, default=2000, help="streams")
    parser.add_argument("--clients", type=int, default=CORES, help="processes of clients")
    parser.add_argument("--minutes", type=float, help="soak instead of searching")
    parser.add_argument("--streams", type=int, default=8, help="of a soak")
    parser.add_argument("--refusals", action="store_true", help="measure instead of searching")
    parser.add_argument("--window-s", type=float, default=0.335, help="heard by a first chunk")
    parser.add_argument("--shift-s", type=float, default=0.16, help="heard by each chunk more")
    parser.add_argument("--gap-s", type=float, default=GAP_S, help="of silence between sentences")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the graph as well
    print(
        f"load of the machine before: {os.getloadavg()[0]:.1f}; "
        f"{Track.of_heldout(arguments.gap_s).spoken_share:.0%} of the audio is spoken"
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = catalogue_with(folder) if arguments.model == "full" else CATALOGUE_PATH
        entry = Catalogue.load(models).find(MODELS[arguments.model])
        assert entry is not None
        searches = arguments.minutes is None and not arguments.refusals
        alone, best = ceiling(entry) if searches else (math.nan, math.nan)
        url, root = arguments.url, arguments.pid
        if url is None:
            graph = launched(config(arguments, models), folder, arguments.haproxy)
            url, root = stack.enter_context(graph)
        pool = stack.enter_context(
            _pool(arguments.clients + 1, initializer=prepare, initargs=(arguments.gap_s,))
        )
        options = Options(
            url,
            arguments.dialect,
            entry.id,
            arguments.window_s,
            arguments.shift_s,
            arguments.gap_s,
        )
        load = Load(options, pool, arguments.clients, root, arguments.seconds)
        probe(load, min(4 * CORES, arguments.most), 3.0)  # loads the models
        if arguments.minutes is not None:
            soak(load, arguments.streams, arguments.minutes)
            return
        if arguments.refusals:
            refusals(load, arguments.most)
            return
        print(HEADER, flush=True)
        streams = largest(load, arguments.first, arguments.most)
        print(
            f"{streams} streams, {streams / alone:.2f} of the ceiling one by one, "
            f"{streams / best:.2f} of that in the best batch"
        )


if __name__ == "__main__":
    main()
