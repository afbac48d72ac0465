"""Overhead of the service: wall time of one caller over HTTP ÷ wall time in process.

`make bench` starts the demo graph and runs this against it, on an otherwise idle machine. Both
sides get the same clip as a WAV file, models and options, on the CPU with one thread per engine;
each round runs both one after the other, so that a drift of the machine's speed cancels out.

- *against the same engine class in process*: the graph of the service with its own decoder and
  engines in threads of this process. What is left is the service: HTTP, calls between replicas,
  copies of the audio. A row for each model, and one for the whole graph: transcribe, diarize and
  emotions by sentence, on both sides side by side where the graph allows it.
- *against the bare library*: faster-whisper called directly, and followed by the other two engines
  one after the other. It fills windows of 30 s for demo-whisper, which was trained on 10 s, and the
  service runs its branches side by side: both rows may come out below 1.
"""

import argparse
import asyncio
import io
import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # as in replicas; numpy reads it

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
from faster_whisper import WhisperModel, decode_audio

from benchmarks.demo_meeting import meeting, wav
from benchmarks.in_process_graph import DEMO, RECOGNISERS, Engines
from engines import gpu_libraries
from engines.diarization.pyannote_diarization import PyannoteEngine
from engines.emotion import EmotionEngine
from speech import merge
from speech.audio import SAMPLE_RATE
from speech.pipeline import ProcessOptions, SpeechGraph
from speech.ports import DiarizeOptions, EmotionOptions, TranscribeOptions
from speech.transcript import Segment, Transcript, Word

FULL = ("transcribe", "diarization", "emotion")
ENGINES: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    **{f"transcribe, {model}": (model, ("transcribe",)) for model in RECOGNISERS},
    "diarization, demo-pyannote": (RECOGNISERS[0], ("diarization",)),
    "emotion of the file, demo-gigaam-emo": (RECOGNISERS[0], ("emotion",)),
    "whole graph, demo-whisper": (RECOGNISERS[0], FULL),
}
"""The rows against the engines: the recogniser, and the tasks."""


def clip(seconds: int) -> bytes:
    """The beginning of the demo meeting, repeated where it is shorter, as a WAV of 16 kHz."""
    return wav(np.resize(meeting(), seconds * SAMPLE_RATE))


class Bare:
    """The libraries in this process, set up as the service sets them up."""

    def __init__(self, wav: bytes) -> None:
        self._wav = wav
        self._whisper = WhisperModel(
            str(DEMO / "demo-whisper"), device="cpu", compute_type="int8", cpu_threads=1
        )
        self._pyannote = PyannoteEngine(DEMO / "demo-pyannote", device="cpu", threads=1)
        self._emotion = EmotionEngine(DEMO / "demo-gigaam-emo", device="cpu", threads=1)

    def whisper(self) -> list[Segment]:
        """Decode and transcribe with the options that the service uses by default."""
        default = TranscribeOptions()
        samples = decode_audio(io.BytesIO(self._wav))
        found, _ = self._whisper.transcribe(
            samples, word_timestamps=True, beam_size=default.beam_size, best_of=default.best_of
        )
        return [
            Segment(s.start, s.end, s.text, tuple(Word(w.word, w.start, w.end) for w in s.words))
            for s in found
        ]

    def graph(self) -> None:
        """Transcribe, diarize and classify, one after the other."""
        segments = self.whisper()
        samples = decode_audio(io.BytesIO(self._wav))
        self._pyannote.diarize(samples, DiarizeOptions())
        spans = merge.sentences(segments)
        cut = [samples[round(s.start * SAMPLE_RATE) : round(s.end * SAMPLE_RATE)] for s in spans]
        self._emotion.classify(cut)


def over_http(
    client: httpx.Client, wav: bytes, model: str, tasks: tuple[Any, ...]
) -> Callable[[], dict[str, Any]]:
    """One request to the service; its result block."""
    settings = {"tasks": tasks, "emo": {"analysis_level": _emotion_level(tasks)}}

    def request() -> dict[str, Any]:
        response = client.post(
            "/v1/process",
            files={"audio": ("clip.wav", wav)},
            data={"request_json": json.dumps({"settings": settings}), "model": model},
        )
        response.raise_for_status()
        result: dict[str, Any] = response.json()["result"]
        return result

    return request


def in_process(
    graph: SpeechGraph, wav: bytes, model: str, tasks: tuple[Any, ...]
) -> Callable[[], Transcript]:
    """The same work without the service."""
    options = ProcessOptions(
        frozenset(tasks),
        TranscribeOptions(model=model),
        DiarizeOptions(model="demo-pyannote"),
        EmotionOptions("demo-gigaam-emo", _emotion_level(tasks)),
    )
    return lambda: asyncio.run(graph.process(wav, options))


def _emotion_level(tasks: tuple[Any, ...]) -> Any:
    return "sentence" if "transcribe" in tasks else "file"


def compare(service: Callable[[], Any], bare: Callable[[], Any], other: str, rounds: int) -> str:
    """Median seconds of both sides, and the median and range of the ratio round by round."""
    service()
    bare()
    pairs = [(seconds(service), seconds(bare)) for _ in range(rounds)]
    ratios = sorted(s / b for s, b in pairs)
    return (
        f"service {statistics.median(s for s, _ in pairs):.3f} s, "
        f"{other} {statistics.median(b for _, b in pairs):.3f} s, "
        f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} – {ratios[-1]:.3f})"
    )


def same_text(result: dict[str, Any], transcript: Transcript) -> str:
    """A remark where both sides have not done the same."""
    text = None if result["tra"] is None else result["tra"]["text"]
    expected = None if transcript.segments is None else transcript.text
    return "" if text == expected else "; the texts differ"


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure against the service at ``SPEECHGRAPH_URL``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=30, help="of the clip")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of the engines in this process"
    )
    parser.add_argument(
        "--against", nargs="+", choices=("engine", "library"), default=("engine", "library")
    )
    options = parser.parse_args()
    if options.device == "cuda":
        gpu_libraries.load_libraries("ctranslate2")
        gpu_libraries.load_libraries("onnxruntime")
    wav = clip(options.seconds)
    url = os.environ.get("SPEECHGRAPH_URL", "http://127.0.0.1:8000")
    with httpx.Client(base_url=url, timeout=300) as client:
        print(f"clip of {options.seconds} s, {options.rounds} rounds")
        if "engine" in options.against:
            print("against the same engine class in process")
            graph = Engines(options.device).graph()
            for name, (model, tasks) in ENGINES.items():
                service = over_http(client, wav, model, tasks)
                engine = in_process(graph, wav, model, tasks)
                remark = same_text(service(), engine())
                print(f"  {name}: {compare(service, engine, 'engine', options.rounds)}{remark}")
        if "library" in options.against and options.device == "cpu":
            print("against the bare library")
            bare = Bare(wav)
            for name, tasks, library in (
                ("transcribe, demo-whisper", ("transcribe",), bare.whisper),
                ("whole graph, demo-whisper", FULL, bare.graph),
            ):
                service = over_http(client, wav, RECOGNISERS[0], tasks)
                print(f"  {name}: {compare(service, library, 'library', options.rounds)}")


if __name__ == "__main__":
    main()
