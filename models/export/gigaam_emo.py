"""GigaAM-Emo from its own weights to the ONNX files that engines/emotion.py reads.

Run in the environment of ``models/export/requirements.txt``, where the weights can be fetched or
lie in ``~/.cache/gigaam/v1_emo.ckpt``::

    python models/export/gigaam_emo.py models/hub/gigaam-emo

Writes ``model.onnx`` (``features`` [B, 64, T] and ``feature_lengths`` [B] → ``probs`` [B, 4]) and
``labels.json``, then compares the export with the original. The package's own ``to_onnx`` is not
used: in 0.1.0 it bakes the length of its example into the pooling and drops all rows but the first.
"""

import argparse
import json
from pathlib import Path

import gigaam
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

SHAPES = ((1, 31), (3, 500), (2, 1501))
"""Batch and frames to compare with: from the shortest clip to the longest window of the engine."""
TOLERANCE = 1e-3


class Classifier(nn.Module):
    """GigaAM-Emo after its features: the mean of the encoded frames, then the head."""

    def __init__(self, model: gigaam.GigaAMEmo) -> None:
        super().__init__()
        self.encoder, self.head = model.encoder, model.head

    def forward(self, features: Tensor, feature_lengths: Tensor) -> Tensor:
        """Probabilities [B, labels]."""
        encoded, _ = self.encoder(features, feature_lengths)
        scores: Tensor = self.head(encoded.mean(dim=-1))
        return scores.softmax(dim=-1)


@torch.inference_mode()
def export(folder: Path) -> None:
    """Fetch the weights, write the two files, compare. Raises SystemExit if the answers differ."""
    model = gigaam.load_model("emo", fp16_encoder=False, use_flash=False, device="cpu")
    classifier = Classifier(model).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        classifier,
        model.encoder.input_example(),
        str(folder / "model.onnx"),
        input_names=["features", "feature_lengths"],
        output_names=["probs"],
        dynamic_axes={
            "features": {0: "batch", 2: "frames"},
            "feature_lengths": {0: "batch"},
            "probs": {0: "batch"},
        },
        opset_version=17,
    )
    labels = [str(model.id2name[index]) for index in range(len(model.id2name))]
    (folder / "labels.json").write_text(json.dumps(labels) + "\n", encoding="utf-8")
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for batch, frames in SHAPES:
        features, lengths = torch.randn(batch, 64, frames), torch.full([batch], frames)
        expected = classifier(features, lengths).numpy()
        inputs = {"features": features.numpy(), "feature_lengths": lengths.numpy()}
        (answered,) = session.run(["probs"], inputs)
        difference = float(np.abs(answered - expected).max())
        print(f"{batch} × {frames} frames: largest difference {difference:.1e}")
        if not difference < TOLERANCE:
            raise SystemExit("the export does not answer like the original")


def main() -> None:
    """Export into the directory named on the command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the directory to write: models/hub/gigaam-emo")
    export(parser.parse_args().folder)


if __name__ == "__main__":
    main()
