"""The GPU memory that a config may need: the models that may be loaded on one card at once."""

from collections.abc import Iterator
from dataclasses import dataclass

from configs.catalogue import ModelEntry
from configs.deployment_settings import RAY_UNIT, Deployment
from configs.engine_settings import EngineSettings, ModelSettings
from configs.settings import SpeechArgs
from deployments.runtime.model_access import ModelFiles
from engines import gpu

PROCESS_MB = 500
"""What each process takes of a GPU beside its models: the context of CUDA and the kernels."""
_WHOLE = round(1 / RAY_UNIT)


@dataclass(frozen=True, slots=True)
class Share:
    """Replicas of one deployment that are on the same GPU, and the models of each."""

    deployment: str
    replicas: int
    models: tuple[ModelEntry, ...]

    @property
    def memory_mb(self) -> int:
        """What all of them take of the card, MiB."""
        return self.replicas * (PROCESS_MB + sum(model.memory_mb for model in self.models))

    def __str__(self) -> str:
        models = ", ".join(model.id for model in self.models)
        return f"{self.memory_mb} for {self.replicas} of {self.deployment} with {models}"


def fullest_gpu(args: SpeechArgs, files: ModelFiles) -> tuple[Share, ...]:
    """The replicas that may meet on one GPU and take most of it; empty if no deployment uses one.

    Each has its preloaded and its default models, and up to ``max_models`` the largest others of
    its family, as far as they are on this machine where ``offline`` forbids to fetch them.
    """
    best: dict[int, tuple[Share, ...]] = {0: ()}  # by the part of the card that is taken
    for name, placed, settings in _on_gpu(args):
        models = _models(name, settings, files)
        part = round(min(placed.resources.num_gpus, 1.0) / RAY_UNIT)
        for taken, others in list(best.items()):
            for replicas in range(1, _most(placed) + 1):
                together = taken + replicas * part
                if together > _WHOLE:
                    break
                shares = (*others, Share(name, replicas, models))
                if memory_mb(shares) > memory_mb(best.get(together, ())):
                    best[together] = shares
    return max(best.values(), key=memory_mb)


def memory_mb(shares: tuple[Share, ...]) -> int:
    """What they take together, MiB."""
    return sum(share.memory_mb for share in shares)


def description(shares: tuple[Share, ...]) -> str:
    """The sum and its parts, in one line."""
    parts = "; ".join(map(str, shares))
    return f"up to {memory_mb(shares)} MiB of one GPU may be in use at once: {parts}"


def warning(shares: tuple[Share, ...], gpu_mb: int) -> str | None:
    """What to warn of before the memory of a card, MiB, runs out; None if it suffices."""
    if memory_mb(shares) <= gpu_mb:
        return None
    return (
        f"{description(shares)}. It has {gpu_mb}: lower max_models or max_replicas, or let fewer "
        "replicas share it (resources.num_gpus)"
    )


def memory_of_this_gpu_mb() -> int | None:
    """The memory of the GPU that this process sees first, MiB; None where it sees none."""
    card = gpu.state()
    return None if card is None else card.total_mb


def _on_gpu(args: SpeechArgs) -> Iterator[tuple[str, Deployment, EngineSettings]]:
    """Name, place and models of each deployment that loads models on a GPU."""
    placed: list[tuple[str, Deployment, EngineSettings]] = [
        (name, settings, settings) for name, settings in args.model_deployments().items()
    ]
    if args.live is not None:
        local = args.live.placement == "local"
        place: Deployment = args.ingress if local else args.live
        placed.append(("live", place, args.live))
    for found in placed:
        if found[1].resources.num_gpus and found[2].device != "cpu":
            yield found


def _most(placed: Deployment) -> int:
    scaling = placed.scaling
    return min(scaling.max_replicas, scaling.max_replicas_per_node or scaling.max_replicas)


def _models(name: str, settings: EngineSettings, files: ModelFiles) -> tuple[ModelEntry, ...]:
    ids = (*settings.preloaded, settings.default_model)
    named = list({entry.id: entry for entry in map(files.entry, ids)}.values())
    if not isinstance(settings, ModelSettings):  # live streams: no bound, and nothing is unloaded
        return tuple(named)
    others = [
        entry
        for entry in files.catalogue.models
        if entry.family == name and entry not in named and (not files.offline or files.has(entry))
    ]
    by_size = [sorted(some, key=lambda entry: -entry.memory_mb) for some in (named, others)]
    return tuple(by_size[0] + by_size[1])[: settings.max_models]
