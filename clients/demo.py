"""Sends the demo dialogues to a running service and prints their words, speakers and emotions."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

AUDIO = Path(__file__).parent.parent / "models" / "demo" / "audio"
DIALOGUES = ("dialogue-ru.flac", "dialogue-en.flac")
REQUEST = {
    "settings": {
        "tasks": ["transcribe", "diarization", "emotion"],
        "tra": {"vad_filter": True},
        "emo": {"analysis_level": "sentence"},
    }
}


def process(url: str, path: Path) -> dict[str, Any]:
    """The result block of ``POST /v1/process`` for one file."""
    response = httpx.post(
        f"{url}/v1/process",
        files={"audio": (path.name, path.read_bytes())},
        data={"request_json": json.dumps(REQUEST)},
        timeout=300,
    )
    if response.is_error:
        raise SystemExit(f"{path.name}: HTTP {response.status_code}: {response.text}")
    result: dict[str, Any] = response.json()["result"]
    return result


def page(name: str, result: dict[str, Any]) -> str:
    """One dialogue as lines of text: time, speaker, emotion, words."""
    lines = [f"── {name}: {result['duration']:.1f} s, language {result['tra']['language']} "]
    for segment in result["tra"]["segments"]:
        emotion = segment["emotion"] or {}
        label = max(emotion, key=emotion.__getitem__, default="")
        lines.append(
            f"{_clock(segment['start'])} – {_clock(segment['end'])}  "
            f"{segment['speaker'] or '?':<11} {label:<9} {segment['text'].strip()}"
        )
    seconds = ", ".join(f"{stage} {s:.2f}" for stage, s in result["stage_seconds"].items())
    models = ", ".join(result["models"].values())
    return "\n".join([*lines, f"   seconds: {seconds}", f"   models: {models}", ""])


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{seconds % 60:04.1f}"


def main() -> None:
    """Process every dialogue with the service at ``SPEECHGRAPH_URL``."""
    url = os.environ.get("SPEECHGRAPH_URL", "http://127.0.0.1:8000")
    for name in DIALOGUES:
        sys.stdout.write(page(name, process(url, AUDIO / name)) + "\n")


if __name__ == "__main__":
    main()
