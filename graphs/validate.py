"""`python -m graphs.validate FILE... [OPTIONS]`: checks configs before Ray sees them.

Serve ignores misspelt fields of a deployment and reports wrong arguments only after it has
started to deploy; here both are errors with their place in the file. With --offline, this machine
has to have the files of all default and preloaded models. With --node, the shell that is to run
`ray start` is checked too. What the models may take of one GPU is printed, with a warning where it
exceeds the memory of the card: that of --gpu-memory-mb, or of the one in this machine.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray._common.utils import import_attr
from ray.runtime_env import RuntimeEnv
from ray.serve import Deployment
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.application_state import override_deployment_info
from ray.serve._private.build_app import build_app
from ray.serve._private.config import ReplicaConfig
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY, RAY_SERVE_HAPROXY_MAXCONN
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve._private.utils import validate_route_prefix
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from configs.deployment_settings import Resources
from configs.engine_settings import ReloadableSettings
from configs.reasons import reasons
from configs.settings import SERVE_ENVIRONMENT, TELEMETRY_OFF, SpeechArgs
from deployments.runtime.model_access import ModelFiles
from deployments.runtime.model_check import missing_models, named_models
from deployments.runtime.rollout import endless
from graphs import node_limits
from graphs.gpu_memory import (
    Share,
    description,
    fullest_gpu,
    memory_of_this_gpu_mb,
    warning,
)
from graphs.speech import InvalidArguments, build

RELOADABLE: dict[str, type[BaseModel]] = dict.fromkeys(
    ("Whisper", "OnnxAsr", "Emotion", "Diarization"), ReloadableSettings
)
"""The schema of ``user_config``; the other deployments take none."""
FORMER_NAMES = {"Vosk": "OnnxAsr"}
"""Deployments that have been renamed. An override needs the present name: Serve has no aliases."""


def problems(path: Path, *, offline: bool = False) -> list[str]:
    """Everything that is wrong with a Serve config file; empty if it can be deployed.

    ``offline``: also the default and preloaded models whose files this machine has not.
    """
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
        parsed = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        return reasons(error)
    except (OSError, ImportError, UnicodeError, yaml.YAMLError) as error:
        return [_in_one_line(error)]
    if not parsed.applications:
        return ["applications: is empty, which deletes all applications that run"]
    found = list(_unknown_fields(config, ServeDeploySchema, ""))
    if not 0 < parsed.http_options.port < 2**16:
        found.append(f"http_options.port: {parsed.http_options.port} is no port")
    for application in parsed.applications:
        wrong = _application_problems(application)
        found += wrong or (_missing_files(application) if offline else [])
    return found


def _missing_files(application: ServeApplicationSchema) -> list[str]:
    if import_attr(application.import_path) is not build:
        return []
    args = SpeechArgs(**application.args)
    files = replace(ModelFiles.of(args), offline=True)
    place = f"applications[{application.name}].args"
    return [f"{place}.{problem}" for problem in missing_models(named_models(args), files)]


def _gpu_shares(path: Path) -> Iterator[tuple[Share, ...]]:
    """What the applications of a valid config may take of one GPU, those that take any."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for application in ServeDeploySchema.model_validate(config).applications:
        if import_attr(application.import_path) is build:
            args = SpeechArgs(**application.args)
            if shares := fullest_gpu(args, ModelFiles.of(args)):
                yield shares


def _application_problems(application: ServeApplicationSchema) -> list[str]:
    place = f"applications[{application.name}]"
    try:
        builder = import_attr(application.import_path)
        graph = call_user_app_builder_with_args_if_necessary(builder, application.args)
        infos = {d.name: _info(d) for d in build_app(graph, name="").deployments}
        validate_route_prefix(application.route_prefix)
    except InvalidArguments as error:
        return [f"{place}.{reason}" for reason in error.reasons]
    except Exception as error:  # whatever the modules and builders of others raise
        return [f"{place}: {_in_one_line(error)}"]
    found = list(_environment_problems(application.runtime_env, place))
    for deployment in application.deployments:
        found += _override_problems(application, deployment, infos, place)
    names = [deployment.name for deployment in application.deployments]
    twice = sorted({name for name in names if names.count(name) > 1})
    return found + [f"{place}.deployments: {name!r} is given twice" for name in twice]


def _environment_problems(runtime_env: dict[str, Any], place: str) -> Iterator[str]:
    for name in sorted(set(runtime_env) - RuntimeEnv.known_fields):
        yield f"{place}.runtime_env.{name}: unknown field"
    try:
        RuntimeEnv(**runtime_env)
    except (TypeError, ValueError) as error:
        yield f"{place}.runtime_env: {_in_one_line(error)}"


def _info(deployment: Deployment) -> DeploymentInfo:
    """What Serve applies overrides to, without the arguments of the replicas."""
    replica = ReplicaConfig.create(
        deployment.func_or_class,
        ray_actor_options=deployment.ray_actor_options,
        max_replicas_per_node=deployment._replica_config.max_replicas_per_node,
    )
    return DeploymentInfo(deployment._deployment_config, replica, 0, "")


def _override_problems(
    application: ServeApplicationSchema,
    deployment: DeploymentSchema,
    infos: dict[str, DeploymentInfo],
    place: str,
) -> Iterator[str]:
    name = deployment.name
    if name not in infos:
        renamed = f", which is {FORMER_NAMES[name]} now" if name in FORMER_NAMES else ""
        there_are = f"there are {', '.join(sorted(infos))}"
        yield f"{place}.deployments: no deployment {name!r}{renamed}; {there_are}"
        return
    where = f"{place}.deployments[{name}]"
    alone = application.model_copy(update={"deployments": [deployment]})
    try:
        overridden = override_deployment_info(infos, alone)[name]
        Resources.whole_gpus(overridden.replica_config.ray_actor_options.get("num_gpus") or 0)
        yield from (f"{where}: {problem}" for problem in _endless_updates(overridden))
    except ValidationError as error:
        yield from reasons(error, where)
    except Exception as error:  # classes that it names are imported
        yield f"{where}: {_in_one_line(error)}"
    user_config = deployment.user_config
    if "user_config" not in deployment.model_fields_set or user_config is None:
        return
    schema = RELOADABLE.get(name)
    if schema is None:
        yield f"{where}: takes no user_config"
        return
    try:
        schema.model_validate(user_config)
    except ValidationError as error:
        yield from reasons(error, f"{where}.user_config")


def _endless_updates(info: DeploymentInfo) -> Iterator[str]:
    config = info.deployment_config
    scaling = config.autoscaling_config
    most = scaling.max_replicas if scaling else config.num_replicas or 1
    per_node = info.replica_config.max_replicas_per_node
    problem = endless(config.max_surge_percent, most, per_node)
    if problem is not None:
        yield problem


def _unknown_fields(value: Any, schema: Any, place: str) -> Iterator[str]:
    """Names in ``value`` that ``schema`` does not know, at any depth that the schema types."""
    if isinstance(value, list):
        for item in value:
            name = item.get("name", "") if isinstance(item, dict) else ""
            yield from _unknown_fields(item, schema, f"{place}[{name}]")
        return
    if not isinstance(value, dict) or schema is None:
        return
    fields = schema.model_fields
    aliases = {field.alias or name: field for name, field in fields.items()}
    for name, inner in value.items():
        field = fields.get(name) or aliases.get(name)
        where = f"{place}.{name}".lstrip(".")
        if field is None:
            yield f"{where}: unknown field"
        else:
            yield from _unknown_fields(inner, _model_in(field.annotation), where)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error; PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader. Raises yaml.YAMLError."""
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: {key.value!r} is given twice")
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def node_problems() -> list[str]:
    """What is wrong with the environment that Ray would be started in, of this very process."""
    found = node_limits.problems(RAY_SERVE_ENABLE_HA_PROXY, RAY_SERVE_HAPROXY_MAXCONN)
    for name, value in (SERVE_ENVIRONMENT | TELEMETRY_OFF).items():
        if os.environ.get(name) != value:
            found.append(f"{name} is not {value}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Check each file; exit status 1 if any has a problem."""
    parser = argparse.ArgumentParser(prog="python -m graphs.validate", description=__doc__)
    parser.add_argument("configs", nargs="*", type=Path, metavar="FILE", help="Serve config")
    parser.add_argument(
        "--offline", action="store_true", help="check that the files of the models are here"
    )
    parser.add_argument(
        "--node",
        action="store_true",
        help="check the limits and the environment of this shell for `ray start`",
    )
    parser.add_argument(
        "--gpu-memory-mb",
        type=int,
        metavar="MIB",
        help="memory of a GPU that the models have to fit (default: of the one in this machine)",
    )
    options = parser.parse_args(arguments)
    found = {str(path): problems(path, offline=options.offline) for path in options.configs}
    if options.node:
        found["this node"] = node_problems()
    if not found:
        parser.error("name the files to check, or --node")
    for name, complaints in found.items():
        for complaint in complaints:
            sys.stderr.write(f"{name}: {complaint}\n")
        if not complaints:
            sys.stdout.write(f"{name}: ok\n")
    gpu_mb = options.gpu_memory_mb or memory_of_this_gpu_mb()
    for path in options.configs:
        for shares in () if found[str(path)] else _gpu_shares(path):
            problem = None if gpu_mb is None else warning(shares, gpu_mb)
            if problem is not None:
                sys.stderr.write(f"{path}: warning: {problem}\n")
            else:
                sys.stdout.write(f"{path}: {description(shares)}\n")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
