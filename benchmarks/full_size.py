"""An untrained streaming CTC model as large as the 20M-parameter streaming zipformer.

``python -m benchmarks.full_size FOLDER`` writes ``model.onnx`` and ``tokens.txt``: the demo's own
streaming recogniser with ten blocks of 2.2 million weights instead of nine of 0.3, so that it runs
the same code as the trained one and costs as much as a model for production. Its words are random;
a bias makes them about as frequent as in speech.
"""

import argparse
import shutil
from pathlib import Path

import torch

from benchmarks.speech_track import Track
from models.recipes.ctc_export import STREAMING, _export_streaming
from models.recipes.ctc_model import STRIDE, CtcTrunk, Shape
from models.recipes.features import log_mel
from models.recipes.paths import DEMO

SHAPE = Shape(width=512, hidden=2048, blocks=10, phoneme_block=6)
SEED = 20
STATISTICS_S = 60
PIECES_PER_FRAME = 0.15
"""At 25 frames a second about four pieces, which make two or three words."""


def untrained(pieces: int) -> CtcTrunk:
    """Random weights; normalisation and the bias of the blank are fitted to the demo's speech."""
    torch.manual_seed(SEED)
    trunk = CtcTrunk(pieces, phonemes=1, shape=SHAPE).eval()
    speech = torch.from_numpy(Track.of_heldout().samples(STATISTICS_S)).float()[None] / 32768
    features = log_mel(speech, "nemo")
    features = features[:, : features.shape[1] // STRIDE * STRIDE]
    trunk.set_statistics("nemo", features.mean((0, 1)), features.std((0, 1)))
    with torch.no_grad():
        logits, _ = trunk(features, "nemo")
        ahead = logits[0, :, :-1].amax(-1) - logits[0, :, -1]
        trunk.head.bias[-1] += ahead.quantile(1 - PIECES_PER_FRAME)
    return trunk


def write(folder: Path) -> None:
    """The model in sherpa-onnx's format, with the pieces of the demo."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = DEMO / STREAMING / "tokens.txt"
    shutil.copy(tokens, folder / tokens.name)
    pieces = len(tokens.read_text(encoding="utf-8").splitlines())
    _export_streaming(untrained(pieces), folder / "model.onnx")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
