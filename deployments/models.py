"""Where a replica finds its models and its device: the part that all loaders share."""

import os
from dataclasses import dataclass
from pathlib import Path

import ray

from configs.catalogue import Catalogue, ModelEntry
from configs.settings import EngineSettings
from deployments.options import threads
from engines import device, store
from speech.errors import ModelNotFound


@dataclass(frozen=True)
class ModelFiles:
    """The catalogue together with the places where its files may lie."""

    catalogue: Catalogue
    models_dir: Path
    offline: bool

    def entry(self, model: str) -> ModelEntry:
        """The catalogue's entry. Raises ModelNotFound."""
        entry = self.catalogue.find(model)
        if entry is None:
            raise ModelNotFound(f"no model {model!r} in the catalogue")
        return entry

    def locate(self, entry: ModelEntry) -> Path:
        """The directory of a model. Raises ModelUnavailable."""
        return store.locate(entry, self.models_dir, offline=self.offline)


@dataclass(frozen=True)
class Hardware:
    """What an engine of this replica may use."""

    device: str
    compute_type: str
    threads: int


def hardware(settings: EngineSettings) -> Hardware:
    """The device that Ray gave this replica, and the threads pinned to its CPUs.

    To be called before an engine's library loads: Ray leaves CUDA_VISIBLE_DEVICES unset for a
    replica without a share of a GPU, which would let it see all of them.
    """
    if settings.resources.num_gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    resolved = device.resolve(settings.device, ray.get_gpu_ids())
    return Hardware(resolved, settings.compute_type, threads(settings))
