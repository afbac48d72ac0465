"""Overhead of the service over the bare libraries: wall time over HTTP ÷ wall time in process.

`make bench` starts the demo graph and runs this against it, on an otherwise idle machine. Same
clip of 30 s, same models and options, one thread per engine on both sides; each round runs both
sides one after the other, so that a drift of the machine's speed cancels out of the ratio.

- whisper: `POST /v1/process` against faster-whisper called directly;
- graph: transcribe, diarize and emotions by sentence against the same three engines called one
  after the other. The service runs branches side by side, so this may come out below 1.
"""

import argparse
import io
import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for replicas of one CPU; numpy reads it

import statistics
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from faster_whisper import WhisperModel, decode_audio

from engines.diarization.pyannote_diarization import PyannoteEngine
from engines.emotion import EmotionEngine
from speech import merge
from speech.audio import SAMPLE_RATE
from speech.media.decoding import decode
from speech.ports import DiarizeOptions, TranscribeOptions
from speech.transcript import Segment, Word

DEMO = Path(__file__).parent.parent / "models" / "demo"
CLIP_S = 30
FULL = {"tasks": ["transcribe", "diarization", "emotion"], "emo": {"analysis_level": "sentence"}}


def clip() -> bytes:
    """The first 30 s of the demo meeting as a WAV of 16 kHz."""
    meeting = (DEMO / "audio" / "meeting-10min.opus").read_bytes()
    audio = decode(meeting, keep_channels=False, max_seconds=3600, max_channels=1)
    pcm = (audio.mono[: CLIP_S * SAMPLE_RATE] * 32767).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(pcm.tobytes())
    return file.getvalue()


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


def over_http(client: httpx.Client, wav: bytes, settings: dict[str, Any]) -> Callable[[], None]:
    """One request to the service."""

    def request() -> None:
        response = client.post(
            "/v1/process",
            files={"audio": ("clip.wav", wav)},
            data={"request_json": json.dumps({"settings": settings})},
        )
        response.raise_for_status()

    return request


def compare(service: Callable[[], object], bare: Callable[[], object], rounds: int) -> str:
    """Median seconds of both sides, and the median and range of the ratio round by round."""
    service()
    bare()
    pairs = [(seconds(service), seconds(bare)) for _ in range(rounds)]
    ratios = sorted(s / b for s, b in pairs)
    return (
        f"service {statistics.median(s for s, _ in pairs):.3f} s, "
        f"bare {statistics.median(b for _, b in pairs):.3f} s, "
        f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} – {ratios[-1]:.3f})"
    )


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure against the service at ``SPEECHGRAPH_URL``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    wav = clip()
    bare = Bare(wav)
    url = os.environ.get("SPEECHGRAPH_URL", "http://127.0.0.1:8000")
    with httpx.Client(base_url=url, timeout=300) as client:
        print(f"clip of {CLIP_S} s, {rounds} rounds")
        print("whisper:", compare(over_http(client, wav, {}), bare.whisper, rounds))
        print("graph:  ", compare(over_http(client, wav, FULL), bare.graph, rounds))


if __name__ == "__main__":
    main()
