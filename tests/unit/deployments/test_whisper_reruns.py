"""The Whisper deployment counts the windows that its engines run again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import whisper
from engines.device import Target


class Engine:
    """An engine that runs two windows again when it warms up."""

    compute_type = "float16"

    def __init__(self, path: Path, *, on_rerun: Any, **_: Any) -> None:
        self._on_rerun = on_rerun

    def warm_up(self) -> None:
        self._on_rerun(2)


def test_windows_that_run_again_are_counted_by_model(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[str, int]] = []
    monkeypatch.setattr("engines.whisper.engine.WhisperEngine", Engine)
    monkeypatch.setattr(whisper, "count_reruns", lambda *given: counted.append(given))
    deployment = whisper.Whisper.__new__(whisper.Whisper)
    deployment._files = SimpleNamespace(entry=lambda model: model, locate=Path)  # type: ignore
    deployment._hardware = SimpleNamespace(  # type: ignore
        target=Target("cpu"), compute_type="auto", threads=1
    )
    deployment.load("whisper-small")
    assert counted == [("whisper-small", 2)]
