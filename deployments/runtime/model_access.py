"""The model files and the device of a replica, for all loaders."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from configs.catalogue import CATALOGUE_PATH, Catalogue, ModelEntry, resolve_path
from configs.engine_settings import EngineSettings
from configs.settings import SpeechArgs
from deployments.runtime.options import threads
from engines import device, model_files
from engines.cache import NEVER, ModelCache
from speech.errors import ModelNotFound

if TYPE_CHECKING:
    from engines.onnx_asr.streaming import StreamingEngine

    StreamingModels = ModelCache[device.Loaded[StreamingEngine]]


@dataclass(frozen=True)
class ModelFiles:
    """The catalogue together with the places where its files may be."""

    catalogue: Catalogue
    models_dir: Path
    offline: bool

    @classmethod
    def of(cls, args: SpeechArgs) -> "ModelFiles":
        """Those of a graph. Raises OSError, ValueError for the catalogue."""
        catalogue = Catalogue.load(resolve_path(args.catalogue or CATALOGUE_PATH))
        return cls(catalogue, resolve_path(args.models_dir), args.offline)

    def entry(self, model: str) -> ModelEntry:
        """The catalogue's entry. Raises ModelNotFound."""
        entry = self.catalogue.find(model)
        if entry is None:
            raise ModelNotFound(f"no model {model!r} in the catalogue")
        return entry

    def has(self, entry: ModelEntry) -> bool:
        """Whether the files of a model are on this machine. It reads the disk."""
        return model_files.find(entry, self.models_dir) is not None

    def locate(self, entry: ModelEntry) -> Path:
        """The directory of a model. Raises ModelNotInstalled, ModelUnavailable."""
        return model_files.locate(entry, self.models_dir, offline=self.offline)


@dataclass(frozen=True)
class Hardware:
    """What an engine of this replica may use."""

    target: device.Target
    compute_type: str
    threads: int


def hardware(settings: EngineSettings) -> Hardware:
    """What the settings ask for and Ray gave this replica, and the threads pinned to its CPUs.

    To be called before an engine's library loads: Ray leaves CUDA_VISIBLE_DEVICES unset for a
    replica without a share of a GPU, which would let it see all of them.
    """
    if settings.resources.num_gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    target = device.Target(settings.device, assigned=bool(ray.get_gpu_ids()))
    return Hardware(target, settings.compute_type, threads(settings))


def streaming_models(files: ModelFiles, found: Hardware) -> "StreamingModels":
    """The frame-synchronous models of this process; they load on first use, and stay."""
    return ModelCache(
        partial(_load_streaming, files, found),
        max_models=len(files.catalogue.models),
        idle_ttl_s=NEVER,
        task_type="live",
        describe=device.loaded_row,
    )


def streaming_engine(models: "StreamingModels", model: str) -> "StreamingEngine":
    """A loaded model; raises ModelNotFound, ModelUnavailable."""
    with models.use(model) as loaded:
        return loaded.engine


def _load_streaming(
    files: ModelFiles, found: Hardware, model: str
) -> "device.Loaded[StreamingEngine]":
    # Imported here: the graph is built also where this engine's library is not installed.
    from engines.onnx_asr.streaming import StreamingEngine

    entry = files.entry(model)
    path = files.locate(entry)
    return device.load(
        model,
        found.target,
        "sherpa_onnx",
        # One thread for each batch: LocalRecognizer decodes several at once.
        lambda on: StreamingEngine(entry, path, device=on, compute_type=found.compute_type),
    )
