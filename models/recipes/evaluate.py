"""Measure the recognisers on held-out speech, then write their figures and cards.

``python -m models.recipes.evaluate`` takes a few minutes; ``--count`` sets the utterances per
language, ``--models`` picks the models.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from models.recipes import asr_cards, ctc, evaluate_ctc, evaluate_whisper, whisper
from models.recipes.ctc_export import GIGAAM, OFFLINE, STREAMING
from models.recipes.heldout import LANGUAGES, references
from models.recipes.measurements import record
from models.recipes.paths import DEMO
from models.recipes.whisper_export import NAME as WHISPER

COUNT = 160
BARS = {STREAMING: 8.0, OFFLINE: 8.0, GIGAAM: 8.0, WHISPER: 5.0}


def streaming_figures(count: int) -> dict[str, Any]:
    """Fed 0.1 s at a time; a second run with 0.5 s must give the same."""
    folder = DEMO / STREAMING
    figures = evaluate_ctc.measure(evaluate_ctc.streaming_recogniser(folder, 0.1), count)
    slower = evaluate_ctc.streaming_recogniser(folder, 0.5)
    for language in LANGUAGES:
        heldout = references(language, count)
        figures[language]["wer_fed_0.5_s"] = evaluate_ctc.measure_set(slower, heldout)["wer"]
    return figures


def offline_figures(name: str, count: int) -> dict[str, Any]:
    """Whole utterances, one at a time."""
    return evaluate_ctc.measure(evaluate_ctc.offline_recogniser(DEMO / name), count)


def whisper_figures(count: int) -> dict[str, Any]:
    """Through the engine with its defaults; half as many utterances, it is slower."""
    return evaluate_whisper.measure(evaluate_whisper.load(DEMO / WHISPER), count // 2)


def evaluate(name: str, count: int) -> None:
    """Measure one model and write its ``metrics.json``."""
    if name == STREAMING:
        _write(name, streaming_figures(count))
    elif name == WHISPER:
        _write(name, whisper_figures(count))
    else:
        _write(name, offline_figures(name, count))


def _write(name: str, figures: dict[str, Any]) -> None:
    model, _, spent_s = whisper.restore() if name == WHISPER else ctc.restore()
    facts = {
        "bar_wer": BARS[name],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size_bytes": _size(DEMO / name),
        "training_cpu_s": round(spent_s),
    }
    record(DEMO / name / "metrics.json", **facts, **figures)
    print(name, json.dumps(facts | figures, indent=2), flush=True)


def _size(folder: Path) -> int:
    written = ("model.onnx", "tokens.txt", "model.bin", "vocabulary.json", "tokenizer.json")
    return sum((folder / name).stat().st_size for name in written if (folder / name).exists())


def main() -> None:
    """Command line: measure everything and write the cards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--models", nargs="+", choices=list(BARS), default=list(BARS))
    given = parser.parse_args()
    for name in given.models:
        evaluate(name, given.count)
    asr_cards.write()


if __name__ == "__main__":
    main()
