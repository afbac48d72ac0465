"""Steps of a check one after the other, each with a deadline; one that fails stops no other."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Literal

Facts = dict[str, Any]
State = Literal["ok", "failed", "skipped"]


class Unmet(Exception):
    """Something that the step expects is not so; ``facts`` is what it found."""

    def __init__(self, message: str, facts: Facts | None = None) -> None:
        super().__init__(message)
        self.facts = facts or {}


class Skipped(Exception):
    """The step cannot be carried out here; the message states why."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a check. ``run`` returns facts, of which ``summary`` is for the table."""

    name: str
    limit_s: float
    run: Callable[[], Facts]


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended. Memory in MB, before and after it."""

    step: str
    state: State
    summary: str
    seconds: float
    memory_before_mb: float | None
    memory_after_mb: float | None
    facts: Facts = field(default_factory=dict)


def carry_out(
    steps: Sequence[Step],
    *,
    budget_s: float,
    memory_mb: Callable[[], float | None],
    end_processes: Callable[[], None],
    report: Callable[[Result], None],
) -> list[Result]:
    """Run the steps within ``budget_s`` seconds in all; each result is reported at once.

    ``end_processes`` ends what a step that exceeded its limit has started and still runs.
    """
    ends_at = time.monotonic() + budget_s
    results = []
    for step in steps:
        started = time.monotonic()
        before = memory_mb()
        state, summary, facts = _bounded(step, min(step.limit_s, ends_at - started), end_processes)
        seconds = round(time.monotonic() - started, 1)
        result = Result(step.name, state, summary, seconds, before, memory_mb(), facts)
        results.append(result)
        report(result)
    return results


def _bounded(
    step: Step, limit_s: float, end_processes: Callable[[], None]
) -> tuple[State, str, Facts]:
    if limit_s <= 0:
        return "skipped", "no time is left", {}
    ended: SimpleQueue[tuple[State, str, Facts]] = SimpleQueue()
    # A daemon, as a step that exceeds its limit may never return.
    Thread(target=lambda: ended.put(_outcome(step)), daemon=True).start()
    try:
        return ended.get(timeout=limit_s)
    except Empty:
        end_processes()
        return "failed", f"took more than {limit_s:.0f} s", {}


def _outcome(step: Step) -> tuple[State, str, Facts]:
    try:
        facts = step.run()
    except Skipped as reason:
        return "skipped", str(reason), {}
    except Unmet as error:
        return "failed", str(error), error.facts
    except BaseException as error:  # SystemExit too: of a graph that does not start
        return "failed", f"{type(error).__name__}: {error}", {}
    return "ok", str(facts.pop("summary", "")), facts


def table(results: Sequence[Result]) -> str:
    """The results as lines of text, one for each step."""
    rows: list[tuple[str, ...]] = [("step", "state", "s", "MB before", "after", "")]
    for result in results:
        memory = (result.memory_before_mb, result.memory_after_mb)
        shown = ("" if value is None else f"{value:.0f}" for value in memory)
        rows.append((result.step, result.state, f"{result.seconds:.1f}", *shown, result.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(5)] + [0]
    lines = (
        "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def write(results: Sequence[Result], path: Path) -> None:
    """The results as JSON."""
    rows = [asdict(result) for result in results]
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
