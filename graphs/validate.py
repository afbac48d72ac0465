"""`python -m graphs.validate FILE...`: checks Serve configs before Ray sees them.

Serve ignores misspelt fields of a deployment and reports wrong arguments only after it has
started to deploy; here both are errors with their place in the file.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve import Application
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from configs.settings import ReloadableSettings

RELOADABLE: dict[str, type[BaseModel]] = dict.fromkeys(
    ("Whisper", "Vosk", "Emotion", "Diarization"), ReloadableSettings
)
"""The schema of ``user_config``; the other deployments take none."""


def problems(path: Path) -> list[str]:
    """Everything that is wrong with a Serve config file; empty if it can be deployed."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        ServeDeploySchema.model_validate(config)
    except (OSError, yaml.YAMLError) as error:
        return [str(error)]
    except ValidationError as error:
        return _lines(error, "")
    found = list(_unknown_fields(config, ServeDeploySchema, ""))
    for application in config["applications"]:
        found += _application_problems(application)
    return found


def _application_problems(application: dict[str, Any]) -> list[str]:
    place = f"applications[{application.get('name', 'default')}]"
    try:
        builder = _builder(application["import_path"])
        graph = builder(*_arguments(builder, application.get("args", {})))
        names = {deployment.name for deployment in build_app(graph, name="").deployments}
    except ValidationError as error:
        return _lines(error, f"{place}.args")
    except (ImportError, AttributeError, TypeError, ValueError, OSError) as error:
        return [f"{place}: {error}"]
    return [
        problem
        for deployment in application.get("deployments", [])
        for problem in _deployment_problems(deployment, names, place)
    ]


def _deployment_problems(deployment: dict[str, Any], names: set[str], place: str) -> Iterator[str]:
    name = deployment["name"]
    if name not in names:
        yield f"{place}.deployments: no deployment {name!r}; there are {', '.join(sorted(names))}"
        return
    user_config = deployment.get("user_config")
    if user_config is None:
        return
    schema = RELOADABLE.get(name)
    if schema is None:
        yield f"{place}.deployments[{name}]: takes no user_config"
        return
    try:
        schema.model_validate(user_config)
    except ValidationError as error:
        yield from _lines(error, f"{place}.deployments[{name}].user_config")


def _builder(import_path: str) -> Callable[..., Application]:
    module, _, name = import_path.replace(":", ".").rpartition(".")
    builder = getattr(importlib.import_module(module), name)
    if not callable(builder):
        raise TypeError(f"{import_path} is no application builder")
    return builder  # type: ignore[no-any-return]


def _arguments(builder: Callable[..., Application], args: dict[str, Any]) -> list[Any]:
    parameter = next(iter(inspect.signature(builder).parameters.values()))
    return [parameter.annotation.model_validate(args)]


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


def _lines(error: ValidationError, place: str) -> list[str]:
    return [
        f"{'.'.join([place, *map(str, e['loc'])]).lstrip('.')}: {e['msg']}" for e in error.errors()
    ]


def main(paths: list[str]) -> int:
    """Check each file; exit status 1 if any has a problem."""
    status = 0
    for path in paths:
        found = problems(Path(path))
        for problem in found:
            sys.stderr.write(f"{path}: {problem}\n")
        if found:
            status = 1
        else:
            sys.stdout.write(f"{path}: ok\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
