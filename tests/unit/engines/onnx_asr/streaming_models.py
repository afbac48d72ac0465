"""What the tests of streaming recognition share: models, and utterances of the held-out speech."""

from pathlib import Path
from typing import Any

from configs.catalogue import Catalogue, ModelEntry
from engines.onnx_asr.streaming import Step, StreamingEngine
from speech.audio import Samples
from speech.errors import EngineFailed
from speech.transcript import Word
from tests.unit.engines.onnx_asr import toy_transducer

MODEL = "demo-vosk-streaming"
Words = tuple[Word, ...]


def entry_of(model: str) -> ModelEntry:
    entry = Catalogue.load().find(model)
    assert entry is not None
    return entry


def toy(folder: Path, **options: Any) -> StreamingEngine:
    """A transducer made by hand, which has probabilities and takes hotwords in a beam search."""
    toy_transducer.write(folder, streaming=True)
    vocabulary = "<blk>\t0\n▁да\t-1\n▁нет\t-2\n"
    (folder / "bpe.vocab").write_text(vocabulary, encoding="utf-8")
    entry = entry_of(MODEL).model_copy(
        update={"format": "streaming_transducer", "options": options}
    )
    return StreamingEngine(entry, folder, device="cpu")


def alone(engine: StreamingEngine, samples: Samples) -> Words:
    (words,) = engine.step([Step(engine.open(), samples, finish=True)])
    assert not isinstance(words, EngineFailed)
    return words
