"""Checks on a GPU what can only be checked there: `benchmarks/gpu_check.sh` runs it.

All four models of the demo on one GPU, by shares of it: the same text, turns and emotions as on
the CPU, Whisper in every compute type, an out-of-memory that is survived, and the speed of Whisper.
Prints a table and writes JSON. ``--device cpu`` runs the same without a GPU. Exit status 1 if a
step failed.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.gpu_steps import GpuCheck, memory_mb
from benchmarks.step_runner import Result, carry_out, table, write

MINUTES = 10.0


def main() -> int:
    """Run the check."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="for all steps together; the limit of each grows and shrinks with it",
    )
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"))
    parser.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="COMMAND",
        help="to run while the graph is up, with SPEECHGRAPH_URL set; may be repeated",
    )
    options = parser.parse_args()
    done: list[Result] = []

    def report(result: Result) -> None:
        done.append(result)
        write(done, options.json)
        print(f"{result.seconds:6.1f} s  {result.state:<8}{result.step}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        check = GpuCheck(options.device, Path(folder), options.then)
        scale = options.minutes / MINUTES
        steps = [replace(step, limit_s=step.limit_s * scale) for step in check.steps()]
        try:
            carry_out(
                steps,
                budget_s=options.minutes * 60,
                memory_mb=partial(memory_mb, options.device),
                end_processes=check.end_processes,
                report=report,
            )
        finally:
            check.end()
    print(table(done))
    return int(any(result.state == "failed" for result in done))


if __name__ == "__main__":
    sys.exit(main())
