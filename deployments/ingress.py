"""The HTTP surface as a deployment: the Ray-free app of ``api`` around the graph's service."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from api.app import make_app
from configs.catalogue import Catalogue, Family
from configs.settings import IngressSettings
from deployments.service import GraphService


@serve.ingress()
class Ingress:
    """Speaks every dialect and runs the graph."""

    def __init__(
        self,
        settings: IngressSettings,
        catalogue: Catalogue,
        handles: Mapping[str, DeploymentHandle[Any]],
        defaults: Mapping[Family, str],
        timeouts_s: Mapping[str, float],
    ) -> None:
        self._settings = settings
        self._service = GraphService(
            catalogue, handles, defaults, timeouts_s, settings.default_transcriber
        )

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        return make_app(
            self._service, self._settings, version("speechgraph"), server_echoes_request_id=True
        )
