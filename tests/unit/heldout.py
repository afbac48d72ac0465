"""The held-out speech of the demo pack: generated sentences that no demo model was trained on."""

import json
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np

from speech.audio import SAMPLE_RATE, Samples
from speech.media.decoding import decode


@dataclass(frozen=True)
class Clip:
    """A sentence with its text and the times of its words."""

    samples: Samples
    language: str
    text: str
    words: tuple[tuple[str, float, float], ...]


def clips(demo_audio: Path, count: int = 4) -> list[Clip]:
    """The first ``count`` sentences of each language."""
    folder = demo_audio / "heldout"
    lines = (folder / "reference.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    chosen = [r for language in ("ru", "en") for r in _of(read, language)[:count]]
    return [
        Clip(
            load(folder / r["file"]),
            r["language"],
            r["text"],
            tuple((w["word"], w["start"], w["end"]) for w in r["words"]),
        )
        for r in chosen
    ]


def load(path: Path) -> Samples:
    """The mono mix of a file, read-only as after a Serve call."""
    samples = decode(path.read_bytes(), keep_channels=False, max_seconds=600, max_channels=8).mono
    samples.setflags(write=False)
    return samples


def conversation(of: list[Clip], seconds: float, pause_s: float = 1.0) -> Samples:
    """The clips one after the other with pauses, again and again for at least ``seconds``."""
    once = [x for c in of for x in (c.samples, np.zeros(round(pause_s * SAMPLE_RATE), np.float32))]
    joined = np.concatenate(once)
    return np.tile(joined, int(np.ceil(seconds * SAMPLE_RATE / len(joined))))


def plain(text: str) -> str:
    """Words as they are compared: lower case, without punctuation, е for ё."""
    kept = "".join(c if c.isalnum() else " " for c in text.lower().replace("ё", "е"))
    return " ".join(kept.split())


def wer(expected: str, recognised: str) -> float:
    """Word error rate."""
    return float(jiwer.wer(plain(expected), plain(recognised)))


def _of(read: list[dict[str, str]], language: str) -> list[dict]:
    return [r for r in read if r["language"] == language]
