"""Loading of sherpa-onnx recognisers, offline or frame-synchronous, from model files.

Layouts: the files of a model are in its directory, or in Vosk 5's ``am-onnx/`` (also ``am/``) and
``lang/``. A file named ``*.int8.onnx`` is the quantised variant.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sherpa_onnx
from sentencepiece import SentencePieceProcessor

from configs.catalogue import Format, ModelEntry
from engines.onnx_asr.model_options import OnnxAsrOptions
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import ModelNotInstalled, ModelUnavailable, SpeechError

_TRANSDUCER = ("encoder", "decoder", "joiner")
_CTC = ("model",)
FLUSH_SILENCE: Samples = np.zeros(round(0.66 * SAMPLE_RATE), np.float32)
"""Silence after an utterance that moves the last frames through a frame-synchronous model."""


@dataclass(frozen=True, slots=True)
class Recognizer:
    """A loaded sherpa-onnx recogniser: ``OnlineRecognizer`` if ``streaming``, else offline."""

    library: Any
    streaming: bool
    takes_hotwords: bool
    compute_type: str


def load(
    entry: ModelEntry,
    options: OnnxAsrOptions,
    path: Path,
    *,
    device: str,
    compute_type: str,
    threads: int,
) -> Recognizer:
    """Load the recogniser of a catalogue entry from its directory.

    ``compute_type`` "int8" prefers the quantised files, anything else full precision; a single
    variant is used whatever it is. Raises ModelNotInstalled, ModelUnavailable.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch:
            vocabulary = _bpe_vocabulary(path, Path(scratch)) if entry.hotwords else None
            files = _files(path, entry.format, quantised=compute_type == "int8")
            settings: dict[str, Any] = {
                **files,
                "num_threads": threads,
                "provider": device,
                "feature_dim": options.feature_dim,
                "decoding_method": options.decoding_method,
            }
            if vocabulary is not None:
                settings |= {"modeling_unit": "bpe", "bpe_vocab": str(vocabulary)}
            return Recognizer(
                _build(entry.format, settings),
                streaming=entry.streaming,
                takes_hotwords=vocabulary is not None,
                compute_type="int8" if any(".int8." in f for f in files.values()) else "float32",
            )
    except SpeechError:
        raise
    except Exception as error:
        raise ModelUnavailable(
            f"model '{entry.id}' does not load", detail=f"{path}: {error}"
        ) from error


def _build(format_: Format, settings: dict[str, Any]) -> Any:
    match format_:
        case "transducer":
            return sherpa_onnx.OfflineRecognizer.from_transducer(**settings)
        case "nemo_transducer":
            return sherpa_onnx.OfflineRecognizer.from_transducer(
                **settings, model_type="nemo_transducer"
            )
        case "nemo_ctc":
            return sherpa_onnx.OfflineRecognizer.from_nemo_ctc(**settings)
        case "streaming_transducer":
            return sherpa_onnx.OnlineRecognizer.from_transducer(**settings)
        case "streaming_nemo_ctc":
            return sherpa_onnx.OnlineRecognizer.from_nemo_ctc(**settings)
    raise ModelUnavailable(f"format '{format_}' is not supported by this family")


def _files(path: Path, format_: Format, *, quantised: bool) -> dict[str, str]:
    """The files of a model, by sherpa-onnx's argument names."""
    files = {"tokens": str(_first(path, ("lang", "."), "tokens.txt"))}
    for part in _TRANSDUCER if "transducer" in format_ else _CTC:
        variants = sorted(
            _all(path, ("am-onnx", "am", "."), f"{part}*.onnx"),
            key=lambda file: (".int8." in file.name) != quantised,
        )
        if not variants:
            raise ModelNotInstalled(
                "a file of the model is missing", f"{path} holds no {part}.onnx"
            )
        files[part] = str(variants[0])
    return files


def _all(path: Path, folders: tuple[str, ...], pattern: str) -> list[Path]:
    return [file for folder in folders for file in sorted((path / folder).glob(pattern))]


def _first(path: Path, folders: tuple[str, ...], name: str) -> Path:
    found = _all(path, folders, name)
    if not found:
        raise ModelNotInstalled("a file of the model is missing", f"{path} holds no {name}")
    return found[0]


def _bpe_vocabulary(path: Path, scratch: Path) -> Path | None:
    """The word pieces that hotwords are tokenised into, in sherpa-onnx's format: piece, tab, score.

    Vosk ships only SentencePiece's ``bpe.model``, which is converted here. sherpa-onnx chooses the
    tokenisation with the best sum of scores, but BPE scores are merge ranks, so that many early
    pieces would beat a late one. A constant subtracted from each piece makes the fewest pieces win,
    as BPE merging does.
    """
    written = _all(path, ("lang", "."), "bpe.vocab")
    if written:
        return written[0]
    models = _all(path, ("lang", "."), "bpe.model")
    if not models:
        return None
    sentences = SentencePieceProcessor(model_file=str(models[0]))
    ids = range(len(sentences))
    pieces = [(sentences.id_to_piece(i), sentences.get_score(i)) for i in ids]
    ranked = all(score.is_integer() for _, score in pieces)
    penalty = 2 * len(pieces) if ranked else 0
    vocabulary = scratch / "bpe.vocab"
    lines = (f"{piece}\t{score - penalty:g}\n" for piece, score in pieces)
    vocabulary.write_text("".join(lines), encoding="utf-8")
    return vocabulary
