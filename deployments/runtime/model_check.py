"""Whether the replicas of a new version can load their models, before any old one is stopped."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray._raylet import node_labels_match_selector  # type: ignore[attr-defined]
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from configs.deployment_settings import Resources
from configs.engine_settings import EngineSettings
from configs.settings import SpeechArgs
from deployments.runtime.model_access import ModelFiles
from engines.out_of_memory import is_out_of_memory
from speech.errors import SpeechError

logger = logging.getLogger(f"speechgraph.{__name__}")

Node = Mapping[str, Any]
"""An entry of ``ray.nodes()``."""


def missing_on_nodes(deployments: Mapping[str, EngineSettings], files: ModelFiles) -> list[str]:
    """Preloaded models that a node that may run their deployment has not; fetched if allowed."""
    here = ray.get_runtime_context().get_node_id()
    missing: list[str] = []
    elsewhere: list[tuple[str, ObjectRef[list[str]]]] = []
    for node in ray.nodes():
        models = [
            (name, model)
            for name, settings in deployments.items()
            if may_run(settings.resources, node)
            for model in settings.preloaded
        ]
        if models and node["NodeID"] == here:
            missing += missing_models(models, files)
        elif models:
            check = _on(node, _missing_models).remote(models, files)
            elsewhere.append((node["NodeManagerAddress"], check))
    for address, check in elsewhere:
        try:
            missing += [f"{problem} (node {address})" for problem in ray.get(check)]
        except RayError as error:  # a node that dies meanwhile runs no replica
            logger.warning("the models of node %s are not checked: %s", address, error)
    return missing


def not_loadable(
    deployments: Mapping[str, tuple[type, EngineSettings]], files: ModelFiles
) -> list[str]:
    """Deployments whose preloaded models do not load on the CPUs of a node that may run them.

    Nothing but a failure to load counts: a model that needs more memory than a node has beside
    what it runs may nevertheless fit in the place of an old replica.
    """
    nodes = ray.nodes()
    loads: dict[str, ObjectRef[None]] = {}
    for name, (cls, settings) in deployments.items():
        node = next((node for node in nodes if may_run(settings.resources, node)), None)
        if node is not None and settings.preloaded:
            loads[name] = _on(node, _load).remote(cls, _on_cpus(settings), files)
    failed = []
    for name, load in loads.items():
        try:
            ray.get(load)
        except RayTaskError as error:
            if is_out_of_memory(error.cause):
                logger.warning("the models of %s are not checked: %s", name, error.cause)
                continue
            failed.append(f"{name}: {' '.join(str(error.cause).split())}")
        except WorkerCrashedError:
            failed.append(f"{name}: the process that loads its models crashes")
        except RayError as error:
            logger.warning("the models of %s are not checked: %s", name, error)
    return failed


def named_models(args: SpeechArgs) -> list[tuple[str, str]]:
    """The default and preloaded models of every deployment, each with the place of its name."""
    engines: dict[str, EngineSettings] = {**args.model_deployments()}
    if args.live is not None:
        engines["live"] = args.live
    found = [
        (name, model)
        for name, settings in engines.items()
        for model in dict.fromkeys((settings.default_model, *settings.preloaded))
    ]
    speaker = args.ingress.sessions.speaker_model
    return found if speaker is None else [*found, ("ingress.sessions.speaker_model", speaker)]


def missing_models(models: Sequence[tuple[str, str]], files: ModelFiles) -> list[str]:
    """One line for each model that this machine has not and does not get.

    ``models`` are pairs of a deployment and a catalogue id.
    """
    problems = []
    for deployment, model in models:
        try:
            files.locate(files.entry(model))
        except SpeechError as error:
            problems.append(f"{deployment}: {error}")
    return problems


def may_run(resources: Resources, node: Node) -> bool:
    """Whether an empty node would have room for a replica."""
    has = node["Resources"]
    return bool(
        node["Alive"]
        and has.get("CPU", 0.0) >= resources.num_cpus
        and has.get("GPU", 0.0) >= resources.num_gpus
        and has.get("memory", 0.0) >= (resources.memory_mb or 0) * 1024**2
        and node_labels_match_selector(node["Labels"], resources.label_selector)
    )


def _on_cpus(settings: EngineSettings) -> EngineSettings:
    """The old replica has the GPU."""
    resources = settings.resources.model_copy(update={"num_gpus": 0.0})
    changes = {"device": "cpu", "compute_type": "auto", "resources": resources}
    return settings.model_copy(update=changes)


def _on(node: Node, task: Any) -> Any:
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return task.options(scheduling_strategy=place)


@ray.remote(num_cpus=0, max_retries=0)
def _missing_models(models: Sequence[tuple[str, str]], files: ModelFiles) -> list[str]:
    return missing_models(models, files)


@ray.remote(num_cpus=0, max_retries=0, max_calls=1)  # the process ends, and frees the memory
def _load(cls: type, settings: EngineSettings, files: ModelFiles) -> None:
    cls(settings, files)
