"""Files that pyannote.audio loads without a hub: checkpoints, PLDA and the pipeline's config."""

from pathlib import Path
from typing import Any

import numpy as np
import pyannote.audio
import pytorch_lightning
import torch
import yaml
from pyannote.audio import Model
from torch import Tensor


def save_checkpoint(model: Model, path: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a model as ``Model.from_pretrained`` reads it; ``state`` replaces its own weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict() if state is None else state
    checkpoint: dict[str, Any] = {
        "state_dict": {name: tensor.detach().clone() for name, tensor in weights.items()},
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": pytorch_lightning.__version__,
        "epoch": 0,
        "global_step": 0,
        "pyannote.audio": {
            "versions": {
                "torch": torch.__version__.split("+")[0],
                "pyannote.audio": pyannote.audio.__version__,
            },
            "architecture": {
                "module": type(model).__module__,
                "class": type(model).__name__,
            },
            "specifications": model.specifications,
        },
    }
    torch.save(checkpoint, path)


def save_plda(folder: Path, embeddings: np.ndarray, speakers: np.ndarray) -> None:
    """Estimate a PLDA of labelled embeddings and write the two files that pyannote asks for.

    The agglomerative clustering of the demo does not use it; the pipeline loads it all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = embeddings.shape[1]
    mean = embeddings.mean(0)
    np.savez(
        folder / "xvec_transform.npz",
        mean1=mean.astype(np.float32),
        mean2=np.zeros(size, np.float32),
        lda=np.eye(size, dtype=np.float32),
    )
    unit = embeddings - mean
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centres = np.stack([unit[speakers == name].mean(0) for name in np.unique(speakers)])
    residual = unit - centres[np.unique(speakers, return_inverse=True)[1]]
    within = np.cov(residual.T) + 1e-4 * np.eye(size)
    values, vectors = np.linalg.eigh(within)
    whitening = vectors / np.sqrt(values)
    between = whitening.T @ np.cov(centres.T) @ whitening
    psi, rotation = np.linalg.eigh(between)
    np.savez(
        folder / "plda.npz",
        mu=np.zeros(size, np.float32),
        tr=(whitening @ rotation[:, ::-1]).T.astype(np.float32),
        psi=np.maximum(psi[::-1], 1e-4).astype(np.float32),
    )


def save_pipeline(
    folder: Path, clustering: dict[str, Any], segmentation_step: float, min_pause_s: float
) -> None:
    """Write ``config.yaml``: the pipeline, its models by subfolder, its tuned parameters."""
    config = {
        "dependencies": {"pyannote.audio": pyannote.audio.__version__},
        "pipeline": {
            "name": "pyannote.audio.pipelines.SpeakerDiarization",
            "params": {
                "segmentation": "$model/segmentation",
                "segmentation_batch_size": 16,
                "segmentation_step": segmentation_step,
                "embedding": "$model/embedding",
                "embedding_batch_size": 8,
                "embedding_exclude_overlap": True,
                "plda": "$model/plda",
                "clustering": "AgglomerativeClustering",
            },
        },
        "params": {
            "clustering": clustering,
            "segmentation": {"min_duration_off": min_pause_s},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
