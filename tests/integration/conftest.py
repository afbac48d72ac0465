"""One Ray cluster for this folder: a head with the CPUs, two nodes with two pretended GPUs each."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from configs.settings import SpeechArgs
from graphs.speech import build
from tests.calls import sitecustomize
from tests.ports import free_port

Service = Callable[..., AbstractContextManager[str]]
"""Starts an application under a route prefix and gives its base URL."""


def add_node(nodes: Cluster, **options: Any) -> tuple[Node, str]:
    """One more node; the address of its HTTP proxy, which runs while replicas run there."""
    port = free_port()
    ports = {"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(port)}
    return nodes.add_node(env_vars=ports, **options), f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def calls_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each process of the cluster appends its calls of other machines."""
    file = tmp_path_factory.mktemp("calls") / "calls.txt"
    file.touch()
    return file


@pytest.fixture(scope="package")
def nodes(calls_file: Path) -> Iterator[Cluster]:
    """A running cluster without Serve."""
    path = [str(Path(sitecustomize.__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as environment:  # the nodes inherit it, other tests do not
        environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        environment.setenv(sitecustomize.CALLS_FILE, str(calls_file))
        head = {"num_cpus": 16, "num_gpus": 0, "dashboard_port": free_port()}
        head["include_log_monitor"] = False  # it reads the logs again and again for the driver
        nodes = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            add_node(nodes, num_cpus=4, num_gpus=2)
        nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="package")
def cluster(nodes: Cluster) -> Iterator[str]:
    """The same with Serve; the address of the HTTP proxy of the head."""
    ray.init(address=nodes.address, log_to_driver=False)
    port = free_port()
    serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def living_actors(**more: Any) -> list[Any]:
    """What Ray's state API knows of them; of this cluster, whatever else runs on the machine."""
    address = ray.get_runtime_context().gcs_address
    return list_actors(address, filters=[("state", "=", "ALIVE")], limit=1000, **more)


@pytest.fixture(scope="session")
def demo_args(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of configs/demo.yaml, with jobs of its own."""
    config = yaml.safe_load((repository / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    args: dict[str, Any] = config["applications"][0]["args"]
    args["jobs"]["directory"] = str(tmp_path_factory.mktemp("jobs"))
    return args


@pytest.fixture(scope="package")
def application(cluster: str) -> Service:
    """Starts another application beside the demo graph and takes it away again."""

    @contextmanager
    def start(name: str, args: dict[str, Any]) -> Iterator[str]:
        serve.run(build(SpeechArgs(**args)), name=name, route_prefix=f"/{name}")
        try:
            yield f"{cluster}/{name}"
        finally:
            serve.delete(name)

    return start


@pytest.fixture(scope="package")
def demo(application: Service, demo_args: dict[str, Any]) -> Iterator[str]:
    """The whole demo graph; its base URL."""
    with application("speech", demo_args) as url:
        yield url


@pytest.fixture
def process() -> Callable[..., httpx.Response]:
    """Sends one file to ``POST /v1/process`` of a service."""

    def send(
        url: str, audio: Path | bytes, settings: dict[str, Any], **fields: Any
    ) -> httpx.Response:
        data = audio if isinstance(audio, bytes) else audio.read_bytes()
        return httpx.post(
            f"{url}/v1/process",
            files={"audio": ("audio", data)},
            data={"request_json": json.dumps({"settings": settings, **fields})},
            timeout=240,
        )

    return send
