"""Whisper in this process: the bare library, CTranslate2 or torch alone, the engine."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel
from numpy.typing import NDArray

from benchmarks.whisper_load import (
    CLIP,
    CLIP_S,
    FILE,
    FILE_OPTIONS,
    LONGEST,
    OPTIONS,
    PROMPT,
    Row,
    by_callers,
    cut,
    repeated,
)
from deployments.runtime.numpy_threads import limit_numpy_threads
from engines.whisper.encoders import Encoder, WhisperFiles
from engines.whisper.engine import WhisperEngine
from engines.whisper.log_mel import BlockwiseFeatures
from speech.audio import SAMPLE_RATE, Samples

BATCH = 16
ALONE = "faster-whisper, one clip after another"
BATCHED = f"BatchedInferencePipeline, batch {BATCH}"


@dataclass(frozen=True)
class InProcess:
    """A model and how it is loaded. Each method yields rows as soon as they are measured."""

    path: Path
    device: str
    compute_type: str
    threads: int
    seconds: float
    audio: Samples

    def library(self) -> Iterator[Row]:
        """faster-whisper alone: one clip after another, and its batched mode."""
        model = WhisperModel(
            str(self.path),
            device=self.device,
            compute_type=self.compute_type,
            cpu_threads=self.threads,
        )
        (clip,) = cut(self.audio, CLIP_S, 1)
        yield repeated(
            ALONE, CLIP_S, lambda: list(model.transcribe(clip, **OPTIONS)[0]), self.seconds
        )
        pipeline = BatchedInferencePipeline(model)
        window_s, count = model.feature_extractor.chunk_length, 2 * BATCH
        windows = np.concatenate(cut(self.audio, window_s, count))
        times = [{"start": n * window_s, "end": (n + 1) * window_s} for n in range(count)]
        options = {**OPTIONS, "batch_size": BATCH, "clip_timestamps": times}
        yield repeated(
            BATCHED,
            count * window_s,
            lambda: list(pipeline.transcribe(windows, **options)[0]),
            self.seconds,
        )
        yield repeated(
            f"{BATCHED}, 10-minute file",
            len(self.audio) / SAMPLE_RATE,
            lambda: list(pipeline.transcribe(self.audio, **FILE_OPTIONS)[0]),
            self.seconds,
        )

    def encoder_and_decoder(self, encoder: Encoder, batches: Sequence[int]) -> Iterator[Row]:
        """Ready features through the encoder of a library and the decoder of CTranslate2."""
        files = WhisperFiles(
            self.path, device=self.device, compute_type=self.compute_type, encoder=encoder
        )
        with files.folder() as folder:
            loaded = ctranslate2.models.Whisper(
                str(folder),
                device=self.device,
                compute_type=self.compute_type,
                intra_threads=self.threads,
            )
        model = files.with_encoder(loaded)
        config = json.loads((self.path / "preprocessor_config.json").read_text("utf-8"))
        extractor = BlockwiseFeatures(
            feature_size=config["feature_size"], chunk_length=config["chunk_length"]
        )
        window_s = extractor.chunk_length
        ready = [extractor(window)[:, :-1] for window in cut(self.audio, window_s, max(batches))]
        for batch in batches:
            features = np.stack(ready[:batch])
            for alone in (True, False):
                yield repeated(
                    encoder_row(encoder, batch, alone=alone),
                    batch * window_s,
                    _work(model, features, alone),
                    self.seconds,
                )

    def engine(self, callers: Sequence[int]) -> Iterator[Row]:
        """The engine of the service, without the service."""
        limit_numpy_threads()  # as in a replica
        engine = WhisperEngine(
            self.path, device=self.device, compute_type=self.compute_type, threads=self.threads
        )
        engine.warm_up()
        clips = cut(self.audio, CLIP_S, BATCH)
        texts = [_text(engine, clip) for clip in clips]
        for count in callers:
            different: list[int] = []

            def call(number: int, different: list[int] = different) -> None:
                clip = number % len(clips)
                if _text(engine, clips[clip]) != texts[clip]:
                    different.append(clip)

            row = by_callers(engine_row(count), count, call, self.seconds)
            yield replace(row, note=f"{len(different)} texts differ" if different else "same text")
        yield repeated(
            "engine in process, 10-minute file",
            len(self.audio) / SAMPLE_RATE,
            lambda: engine.transcribe(self.audio, FILE),
            self.seconds,
        )


def encoder_row(encoder: Encoder, batch: int, *, alone: bool = False) -> str:
    """The name of a row of ready features."""
    name = "CTranslate2" if encoder == "ctranslate2" else "encoder in torch"
    return f"{name}{', the encoder alone' if alone else ''}, batch {batch}"


def engine_row(callers: int) -> str:
    """The name of a row of the engine."""
    return f"engine in process, callers: {callers}"


def _text(engine: WhisperEngine, clip: Samples) -> str:
    return "".join(segment.text for segment in engine.transcribe(clip, CLIP).segments)


def _work(model: Any, features: NDArray[np.float32], encodes_alone: bool) -> Callable[[], object]:
    def encode() -> Any:
        return model.encode(ctranslate2.StorageView.from_array(features))

    def decode() -> object:
        return model.generate(
            encode(),
            [list(PROMPT)] * len(features),
            beam_size=OPTIONS["beam_size"],
            max_length=LONGEST,
            return_scores=True,
            return_no_speech_prob=True,
        )

    return encode if encodes_alone else decode
