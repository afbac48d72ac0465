"""How fast Whisper is: bare libraries, the engine and the service, with one model in one run.

``python -m benchmarks.whisper --size turbo`` builds a model of the true size of large-v3-turbo with
random weights, which decodes 36 tokens in every window, and measures each way to run it for
``--seconds``: seconds of audio per second, and the median seconds of one call.

- *faster-whisper, one clip after another* and *BatchedInferencePipeline*: the bare library;
- *CTranslate2* and *encoder in torch*: features that are ready, in batches of windows;
- *engine in process*: the engine of the service, with threads that each transcribe clips of 30 s;
- *service*: the same over HTTP, from a graph of its own or that at ``--url``.

The ratios at the end have the targets of the service. The size *demo* is the trained demo-whisper,
whose window has 10 s: the bare library pads it to 30 s, so its rows are no measure of the others.
"""

import argparse
import gc
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.demo_meeting import meeting
from benchmarks.random_whisper import DEMO, LARGE_V3, TURBO, Shape, build
from benchmarks.whisper_in_process import (
    ALONE,
    BATCH,
    BATCHED,
    InProcess,
    encoder_row,
    engine_row,
)
from benchmarks.whisper_load import Report, Row
from benchmarks.whisper_service import rows as service_rows
from benchmarks.whisper_service import service, service_row
from engines import gpu
from engines.gpu_libraries import load_libraries
from engines.whisper.finite import automatic

SIZES = {"base": Shape(512, 8, 6, 6, 80, 51_865), "turbo": TURBO, "large-v3": LARGE_V3}
PARTS = ("library", "ctranslate2", "torch", "engine", "service")


def arguments() -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("demo", *SIZES), default="turbo")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compute-type", default="auto", help="of every row")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a model on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 8, 16, 32, 64))
    parser.add_argument("--callers", type=int, nargs="+", default=(1, 2, 8, 16, 32))
    parser.add_argument("--seconds", type=float, default=3.0, help="of a row, at least one call")
    parser.add_argument("--url", help="of a service that runs already, with this model as default")
    parser.add_argument("--models", type=Path, help="folder that keeps the models for the next run")
    parser.add_argument("--json", type=Path, help="file for the rows as well")
    return parser.parse_args()


def measured(options: argparse.Namespace, model: Path, folder: Path) -> Iterator[Row]:
    """The rows, as soon as each is measured."""
    audio = meeting()
    here = InProcess(
        model, options.device, options.compute_type, options.threads, options.seconds, audio
    )
    if "library" in options.parts:
        yield from here.library()
    if "ctranslate2" in options.parts:
        yield from here.encoder_and_decoder("ctranslate2", options.batches)
    if "torch" in options.parts and importlib.util.find_spec("torch"):
        yield from here.encoder_and_decoder("torch", options.batches)
    if "engine" in options.parts:
        yield from here.engine(options.callers)
    gc.collect()
    if "service" in options.parts:
        with ExitStack() as stack:
            url = options.url or stack.enter_context(
                service(
                    model,
                    folder,
                    device=options.device,
                    compute_type=options.compute_type,
                    threads=options.threads if options.device == "cpu" else 1,
                )
            )
            yield from service_rows(url, options.callers, audio, options.seconds)


def ratios(report: Report, callers: Iterable[int]) -> None:
    """Compare the rows that there are."""

    def ratio(name: str, part: str, whole: str, target: str, *, of_latency: bool = False) -> None:
        rows = report.rows.get(part), report.rows.get(whole)
        if rows[0] is not None and rows[1] is not None:
            first, second = (row.latency_s if of_latency else row.rtfx for row in rows if row)
            report.ratio(name, first / second, target)

    for count in callers:
        called = service_row(count)
        if count >= BATCH:
            ratio(f"{called} ÷ {BATCHED}", called, BATCHED, "2.5 on a GPU, at least")
            torch = encoder_row("torch", count)
            ratio(f"{called} ÷ {torch}", called, torch, "0.8 on a GPU, at least")
        ratio(f"{called} ÷ {engine_row(count)}", called, engine_row(count), "none")
    clip = f"{service_row(1)} ÷ {ALONE}, latency"
    ratio(clip, service_row(1), ALONE, "1.25 on a GPU, at most", of_latency=True)
    together = f"{engine_row(8)} ÷ callers: 1"
    ratio(together, engine_row(8), engine_row(1), "1.5 on two cores, at least")


def main() -> None:
    """Measure."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the graph as well
    if options.device == "cuda":
        load_libraries("ctranslate2")
    if options.compute_type == "auto":
        options.compute_type = automatic(options.device)
    card = gpu.state() if options.device == "cuda" else None
    machine = card.name if card else f"{os.cpu_count()} cores, {options.threads} threads"
    with tempfile.TemporaryDirectory() as folder:
        model = DEMO
        if options.size != "demo":
            keep = options.models or Path(folder)
            model = build(keep / f"whisper-{options.size}-random", SIZES[options.size])
        facts = {"size": options.size, "compute_type": options.compute_type, "machine": machine}
        report = Report(options.json, facts)
        print(f"{options.size}, {options.compute_type}, {machine}")
        print(f"{'':<58}{'RTFx':>9}{'call, s':>10}", flush=True)
        for row in measured(options, model, Path(folder)):
            report.add(row)
        ratios(report, options.callers)


if __name__ == "__main__":
    main()
