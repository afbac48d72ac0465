"""Steps of a check: each ends in a result, and none stops the others."""

import json
import threading
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.step_runner import Result, Skipped, Step, Unmet, carry_out, table, write


def results(*steps: Step, budget_s: float = 60.0, ended: list[str] | None = None) -> list[Result]:
    """The results of steps; ``ended`` receives an entry whenever processes are to be ended."""
    end = (ended if ended is not None else []).append
    reported: list[Result] = []
    found = carry_out(
        steps,
        budget_s=budget_s,
        memory_mb=iter(range(0, 1000, 100)).__next__,
        end_processes=lambda: end("ended"),
        report=reported.append,
    )
    assert reported == found
    return found


def raises(error: BaseException) -> Any:
    def run() -> NoReturn:
        raise error

    return run


def test_every_step_has_a_result_whatever_happens_to_those_before() -> None:
    found = results(
        Step("one", 10, lambda: {"summary": "fine", "figure": 3}),
        Step("two", 10, raises(Unmet("other text", {"found": "x"}))),
        Step("three", 10, raises(Skipped("no GPU"))),
        Step("four", 10, raises(SystemExit("the graph did not start"))),
        Step("five", 10, dict),
    )
    assert [(result.step, result.state, result.summary, result.facts) for result in found] == [
        ("one", "ok", "fine", {"figure": 3}),
        ("two", "failed", "other text", {"found": "x"}),
        ("three", "skipped", "no GPU", {}),
        ("four", "failed", "SystemExit: the graph did not start", {}),
        ("five", "ok", "", {}),
    ]


def test_memory_is_measured_before_and_after_each_step() -> None:
    found = results(Step("one", 10, dict), Step("two", 10, dict))
    assert [(r.memory_before_mb, r.memory_after_mb) for r in found] == [(0, 100), (200, 300)]


def test_a_step_beyond_its_limit_fails_and_its_processes_are_ended() -> None:
    forever = threading.Event()
    ended: list[str] = []
    first, second = results(
        Step("one", 0.05, lambda: {"never": forever.wait()}), Step("two", 10, dict), ended=ended
    )
    forever.set()
    assert (first.state, first.summary) == ("failed", "took more than 0 s")
    assert ended == ["ended"]
    assert second.state == "ok"


def test_steps_for_which_no_time_is_left_are_skipped() -> None:
    (only,) = results(Step("one", 10, dict), budget_s=0)
    assert (only.state, only.summary) == ("skipped", "no time is left")


def test_a_table_and_json_have_a_row_for_each_step(tmp_path: Path) -> None:
    found = results(Step("graph", 10, lambda: {"summary": "up", "models": 4}), Step("b", 1, dict))
    lines = table(found).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["graph", "ok", "0.0", "0", "100", "up"]
    write(found, tmp_path / "check.json")
    rows = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in rows] == ["graph", "b"]
    assert rows[0]["facts"] == {"models": 4}
