"""What the Whisper deployment passes to its engines, and counts of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.engine_settings import WhisperSettings
from deployments import whisper
from engines.device import Target


class Engine:
    """An engine that runs two windows again when it warms up."""

    compute_type = "float16"

    def __init__(self, path: Path, *, on_rerun: Any, **options: Any) -> None:
        self._on_rerun = on_rerun
        self.options = options

    def warm_up(self) -> None:
        self._on_rerun(2)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    monkeypatch.setattr("engines.whisper.engine.WhisperEngine", Engine)
    monkeypatch.setattr(whisper, "count_reruns", lambda *given: found.append(given))
    return found


def deployment(**settings: Any) -> whisper.Whisper:
    found = whisper.Whisper.__new__(whisper.Whisper)
    found._settings = WhisperSettings.model_validate({"default_model": "a", **settings})
    found._files = SimpleNamespace(entry=lambda model: model, locate=Path)  # type: ignore
    found._hardware = SimpleNamespace(  # type: ignore
        target=Target("cpu"), compute_type="auto", threads=1
    )
    return found


def test_windows_that_run_again_are_counted_by_model(counted: list[tuple[str, int]]) -> None:
    deployment().load("whisper-small")
    assert counted == [("whisper-small", 2)]


@pytest.mark.usefixtures("counted")
def test_the_library_of_the_encoder_is_a_setting() -> None:
    for asked in ("auto", "torch", "ctranslate2"):
        engine: Any = deployment(encoder=asked).load("whisper-small").engine
        assert engine.options["encoder"] == asked
