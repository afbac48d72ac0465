"""Versions of deployments: an update restarts the replicas of those whose arguments differ.

Serve 2.60 gives all deployments of a config one version, a hash of all ``args``, so that any change
would restart every replica of the application. A new ``runtime_env`` restarts them in any case, for
it is an option of their actors.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, PrivateAttr, SecretStr
from ray.serve import Application, Deployment
from ray.serve._private.config import DeploymentConfig

LIVE = ("scaling",)
"""Settings that Serve applies to replicas that run."""


def bind(deployment: Deployment, *args: Any) -> Application:
    """``deployment.bind(*args)``, with a version of its own."""
    config = deployment._deployment_config
    values = {name: getattr(config, name) for name in DeploymentConfig.model_fields}
    versioned = _VersionedConfig(**values)
    versioned._own_version = digest([version("speechgraph"), *args])
    deployment._deployment_config = versioned
    return deployment.bind(*args)


def digest(args: Sequence[Any]) -> str:
    """A hash of what the arguments of a replica contain, without LIVE settings."""
    return hashlib.sha256(repr(_plain(args)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Application):
        return "a handle"
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        names = (name for name in type(value).model_fields if name not in LIVE)
        return {name: _plain(getattr(value, name)) for name in names}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


class _VersionedConfig(DeploymentConfig):
    """Keeps the version of the deployment where Serve assigns that of the application."""

    _own_version: str = PrivateAttr("")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._own_version if name == "version" else value)
