"""demo-diarization-light: the same segmentation and a small embedding, as sherpa-onnx reads them.

The embedding trains on exactly the filter banks that sherpa-onnx computes; the segmentation is the
one of demo-pyannote, exported.
"""

import logging
import math
from pathlib import Path

import numpy as np
import onnx
import sherpa_onnx
import torch
from onnxruntime.quantization import quantize_dynamic
from pyannote.audio.models.segmentation import PyanNet
from pyannote.core import Annotation
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from models.recipes import speaker_segmentation
from models.recipes.diarization_trials import (
    Diarize,
    annotation,
    diarized,
    error_rate,
    trials,
)
from models.recipes.embedding import DIMENSION, Crops, spoken_digits, train
from models.recipes.measurements import Stopwatch, record
from models.recipes.paths import DEMO
from models.recipes.speech_bank import TRAIN, bank
from models.recipes.synth import SAMPLE_RATE_HZ

FOLDER = DEMO / "demo-diarization-light"
SEED = 61
STEPS = 700
TRIALS = 10
THRESHOLD = 0.5  # cosine distance at which clusters stop to merge: the engine's default
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
MELS = 80
_LEVEL, _SPREAD = -6.0, 4.0
_OPSET = 17

logger = logging.getLogger(__name__)


class LightEmbedding(nn.Module):
    """A TDNN of 20 ms steps with mean and deviation pooling: filter banks in, embedding out."""

    def __init__(self, channels: int = 128, pooled: int = 384) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        shapes = ((MELS, channels, 5, 2, 1), *((channels, channels, 3, 1, d) for d in (2, 3, 1)))
        for before, after, kernel, stride, dilation in shapes:
            padding = dilation * (kernel - 1) // 2
            layers += [
                nn.Conv1d(before, after, kernel, stride, padding, dilation),
                nn.ReLU(),
                nn.BatchNorm1d(after),
            ]
        layers += [nn.Conv1d(channels, pooled, 1), nn.ReLU(), nn.BatchNorm1d(pooled)]
        self.frames = nn.Sequential(*layers)
        self.embedding = nn.Linear(2 * pooled, DIMENSION)

    def forward(self, fbank: Tensor) -> Tensor:
        """Embeddings [B, dimension] of filter banks [B, frames, 80]."""
        hidden = self.frames(((fbank - _LEVEL) / _SPREAD).transpose(1, 2)).float()
        mean = hidden.mean(2)
        spread = (hidden - mean[:, :, None]).square().mean(2).clamp(min=1e-6).sqrt()
        embeddings: Tensor = self.embedding(torch.cat([mean, spread], 1))
        return embeddings


def kaldi_fbank(waveforms: Tensor) -> Tensor:
    """The 80 filter banks that sherpa-onnx hands to a speaker embedding, [B, frames, 80]."""
    rows = [
        kaldi.fbank(
            waveform[None],
            sample_frequency=SAMPLE_RATE_HZ,
            num_mel_bins=MELS,
            window_type="povey",
            snip_edges=False,
            low_freq=20.0,
            high_freq=-400.0,
            dither=0.0,
        )
        for waveform in waveforms
    ]
    return torch.stack(rows)


def train_light(crops: Crops, steps: int = STEPS) -> LightEmbedding:
    """A trained small embedding."""
    torch.manual_seed(SEED)
    net = LightEmbedding()
    train(net, kaldi_fbank, crops, steps)
    return net.eval()


def export_embedding(net: LightEmbedding, path: Path) -> None:
    """Write ``embedding.onnx`` with the metadata that sherpa-onnx asks for."""
    _export(net, torch.randn(1, 200, MELS), path, {"x": {0: "N", 1: "T"}, "y": {0: "N"}})
    _describe(
        path,
        framework="wespeaker",
        language="Russian, English",
        url="",
        comment="trained on generated speech by models/recipes/light.py",
        sample_rate=SAMPLE_RATE_HZ,
        output_dim=DIMENSION,
        normalize_samples=1,
    )


def export_segmentation(net: PyanNet, path: Path) -> None:
    """Write ``segmentation.onnx`` in the layout of pyannote-segmentation-3.0 for sherpa-onnx.

    The recurrent and linear weights become eight bits; the front end stays as it is.
    """
    window = net.receptive_field
    example = torch.randn(1, 1, round(speaker_segmentation.CHUNK_S * SAMPLE_RATE_HZ))
    _export(net, example, path, {"x": {0: "N", 2: "T"}, "y": {0: "N", 1: "T"}})
    quantize_dynamic(path, path, op_types_to_quantize=["LSTM", "MatMul"])
    _describe(
        path,
        model_type="pyannote-segmentation-3.0",
        version=1,
        num_speakers=speaker_segmentation.SPEAKERS,
        powerset_max_classes=2,
        num_classes=7,
        sample_rate=SAMPLE_RATE_HZ,
        window_size=example.shape[2],
        receptive_field_size=round(window.duration * SAMPLE_RATE_HZ),
        receptive_field_shift=round(window.step * SAMPLE_RATE_HZ),
    )


def scale_distances(path: Path, divisor: float) -> None:
    """Divide all cosine distances between embeddings: unit length, then one constant coordinate.

    So a threshold that suits this embedding becomes the one that engines use by default.
    """
    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["raw" if name == "y" else name for name in node.output]
    extra = np.array(math.sqrt(divisor - 1.0), np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 0, 0, 1]), "pads"))
    graph.initializer.append(onnx.numpy_helper.from_array(extra, "extra"))
    graph.node.append(onnx.helper.make_node("LpNormalization", ["raw"], ["unit"], axis=1, p=2))
    graph.node.append(onnx.helper.make_node("Pad", ["unit", "pads", "extra"], ["y"]))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = DIMENSION + 1
    onnx.save(model, path)
    _describe(path, output_dim=DIMENSION + 1)


def by_sherpa(threshold: float) -> Diarize:
    """sherpa-onnx's offline diarization as a function of samples and number of speakers."""
    config = sherpa_onnx.OfflineSpeakerDiarizationConfig(
        segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(
            pyannote=sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(
                model=str(FOLDER / "segmentation.onnx")
            )
        ),
        embedding=sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=str(FOLDER / "embedding.onnx")),
        clustering=sherpa_onnx.FastClusteringConfig(threshold=threshold),
    )
    engine = sherpa_onnx.OfflineSpeakerDiarization(config)

    def diarize(samples: np.ndarray, speakers: int | None) -> Annotation:
        config.clustering.num_clusters = speakers or -1
        engine.set_config(config)
        found = engine.process(samples).sort_by_start_time()
        return annotation((part.start, part.end, str(part.speaker)) for part in found)

    return diarize


def calibrate() -> None:
    """Find the best threshold on conversations of the training voices and make it ``THRESHOLD``."""
    tried = trials(bank(TRAIN), TRIALS, SEED)
    errors = {}
    for threshold in THRESHOLDS:
        found = diarized(by_sherpa(threshold), tried, speakers_known=False)
        errors[threshold] = error_rate(found, tried)
        logger.info("threshold %.2f DER %.2f %%", threshold, 100 * errors[threshold])
    best = min(errors, key=errors.__getitem__)
    scale_distances(FOLDER / "embedding.onnx", best / THRESHOLD)


def _export(net: nn.Module, example: Tensor, path: Path, axes: dict[str, dict[int, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        net.eval(),
        (example,),
        str(path),
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
        opset_version=_OPSET,
        dynamo=False,
    )


def _describe(path: Path, **metadata: object) -> None:
    model = onnx.load(path)
    known = {entry.key: entry.value for entry in model.metadata_props} | metadata
    del model.metadata_props[:]
    for key, value in known.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)
    onnx.save(model, path)


def main() -> None:
    """Train the small embedding, export it and the trained segmentation."""
    torch.set_num_threads(1)
    crops = Crops(bank(TRAIN), spoken_digits(), SEED)
    watch = Stopwatch()
    export_embedding(train_light(crops), FOLDER / "embedding.onnx")
    record(FOLDER / "metrics.json", embedding_training_cpu_s=watch.seconds())
    segments = speaker_segmentation.loaded(speaker_segmentation.CHECKPOINT)
    export_segmentation(segments, FOLDER / "segmentation.onnx")
    calibrate()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
