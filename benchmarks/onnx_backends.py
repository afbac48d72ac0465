"""Speed of the two backends of recognisers in ONNX: one network, the same audio, one thread.

``python -m benchmarks.onnx_backends`` transcribes the ten-minute meeting with demo-vosk on
sherpa-onnx and with demo-nemo, the same network on onnx-asr. It prints seconds of audio per second
of processor time, the best of three rounds in alternation: of the whole engine, and without voice
activity detection, which both have in common.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.demo_meeting import meeting
from configs.catalogue import REPOSITORY_ROOT, Catalogue
from engines.onnx_asr.offline import OnnxAsrEngine
from engines.vad.silero_vad import SileroVad
from speech.audio import SAMPLE_RATE
from speech.ports import TranscribeOptions

MODELS = {"sherpa-onnx": "demo-vosk", "onnx-asr": "demo-nemo"}
BATCHES = (1, 16)
ROUNDS = 3


def processor_s(work: Callable[[], object]) -> float:
    """Seconds of all threads of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def engine(model: str) -> OnnxAsrEngine:
    """A demo model on one thread of the CPU."""
    entry = Catalogue.load().find(model)
    assert entry is not None
    assert entry.source.path is not None
    return OnnxAsrEngine(entry, REPOSITORY_ROOT / entry.source.path, device="cpu", threads=1)


def main() -> None:
    """Compare and print."""
    samples, vad = meeting(), SileroVad()
    seconds = len(samples) / SAMPLE_RATE
    engines = {backend: engine(model) for backend, model in MODELS.items()}
    of_vad_s = min(processor_s(lambda: vad.probabilities(samples)) for _ in range(ROUNDS))
    print(f"voice activity detection alone: {seconds / of_vad_s:.0f}")
    print("batch | " + " | ".join(f"{backend}, alone" for backend in engines))
    for batch in BATCHES:
        options = replace(TranscribeOptions(), batch_size=batch)
        rounds = [
            {
                backend: processor_s(partial(loaded.transcribe, samples, options))
                for backend, loaded in engines.items()
            }
            for _ in range(ROUNDS)
        ]
        best_s = {backend: min(found[backend] for found in rounds) for backend in engines}
        print(
            f"{batch:5} | "
            + " | ".join(
                f"{seconds / spent:.0f}, {seconds / (spent - of_vad_s):.0f}"
                for spent in best_s.values()
            )
        )


if __name__ == "__main__":
    main()
