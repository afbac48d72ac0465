"""On which nodes Serve's scheduler starts and stops the replicas of a deployment."""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private import default_impl
from ray.serve._private.cluster_node_info_cache import ClusterNodeInfoCache
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import ReplicaConfig
from ray.serve._private.deployment_scheduler import (
    DeploymentDownscaleRequest,
    ReplicaSchedulingRequest,
    SpreadDeploymentSchedulingPolicy,
)

from deployments.runtime.spreading import SpreadingScheduler, spread_replicas

INGRESS = DeploymentID("Ingress", "speech")
LIVE = DeploymentID("Live", "speech")


def node_id(name: str) -> str:
    """An id of a node as Ray checks it."""
    return name.encode().hex().ljust(56, "0")


class Nodes(ClusterNodeInfoCache):
    """Nodes with so many CPUs, the first one the head."""

    def __init__(self, **cpus: float) -> None:
        super().__init__(None)
        self.labels: dict[str, dict[str, str]] = {}
        self.set(**cpus)

    def set(self, **cpus: float) -> None:
        self._cached_alive_nodes = [(node_id(name), name, name) for name in cpus]
        resources = {node_id(name): {"CPU": count} for name, count in cpus.items()}
        self._cached_total_resources_per_node = resources
        self._cached_available_resources_per_node = resources

    def get_node_az(self, node_id: str) -> None:
        return None

    def get_node_labels(self, node_id: str) -> dict[str, str]:
        return self.labels.get(bytes.fromhex(node_id).rstrip(b"\0").decode(), {})


class Actor:
    """Where Serve's request for an actor wants it."""

    def __init__(self) -> None:
        self.node: str | None = None

    def options(self, scheduling_strategy: Any, **_: Any) -> "Actor":
        if scheduling_strategy != "SPREAD":
            assert scheduling_strategy.soft
            self.node = bytes.fromhex(scheduling_strategy.node_id).rstrip(b"\0").decode()
        return self

    def remote(self, *_: Any) -> None:
        return None


class Cluster:
    """Deployments whose replicas run where the scheduler wants them."""

    def __init__(self, **cpus: float) -> None:
        self.nodes = Nodes(**cpus)
        self.scheduler = SpreadingScheduler(self.nodes, node_id(next(iter(cpus))), lambda _: None)
        self.running: dict[ReplicaID, str] = {}
        self.selector: dict[str, str] | None = None
        self.started = 0

    def deploy(self, deployment: DeploymentID) -> None:
        self.scheduler.on_deployment_created(deployment, SpreadDeploymentSchedulingPolicy())
        config = ReplicaConfig.create(SimpleNamespace, ray_actor_options={"num_cpus": 1})
        self.scheduler.on_deployment_deployed(deployment, config)

    def launch(self, deployment: DeploymentID, count: int) -> list[tuple[ReplicaID, str | None]]:
        """Start replicas at once; those and the nodes that they shall run on."""
        actors = {}
        requests = []
        for _ in range(count):
            self.started += 1
            replica = ReplicaID(f"{self.started:03d}", deployment)
            actors[replica] = Actor()
            requests.append(
                ReplicaSchedulingRequest(
                    replica_id=replica,
                    actor_def=actors[replica],
                    actor_resources={"CPU": 1},
                    actor_options={"label_selector": self.selector} if self.selector else {},
                    actor_init_args=(),
                    on_scheduled=lambda *_, **__: None,
                )
            )
        self.scheduler.schedule({deployment: requests}, {})
        return [(replica, actor.node) for replica, actor in actors.items()]

    def start(self, deployment: DeploymentID, count: int, at: Sequence[str] = ()) -> None:
        """Start replicas that run, ``at`` these nodes or where the scheduler wants them."""
        for number, (replica, node) in enumerate(self.launch(deployment, count)):
            place = at[number] if at else node
            assert place is not None
            self.scheduler.on_replica_running(replica, node_id(place))
            self.running[replica] = place

    def stop(self, deployment: DeploymentID, count: int) -> None:
        request = DeploymentDownscaleRequest(deployment, count)
        for replica in self.scheduler.schedule({}, {deployment: request})[deployment]:
            self.stopped(replica)

    def stopped(self, replica: ReplicaID) -> None:
        self.scheduler.on_replica_stopping(replica)
        del self.running[replica]

    def at(self, deployment: DeploymentID) -> Counter[str]:
        """The running replicas of a deployment by node."""
        return Counter(n for r, n in self.running.items() if r.deployment_id == deployment)


def test_replicas_that_start_together_are_spread() -> None:
    cluster = Cluster(head=0, a=8, b=8)
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 4)
    assert cluster.at(INGRESS) == {"a": 2, "b": 2}


def test_each_deployment_is_spread_whatever_else_runs() -> None:
    cluster = Cluster(head=0, a=8, b=8)
    cluster.deploy(LIVE)
    cluster.start(LIVE, 3, at="aaa")
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 1)
    assert cluster.at(INGRESS) == {"b": 1}
    cluster.start(INGRESS, 1)
    assert cluster.at(INGRESS) == {"a": 1, "b": 1}


def test_replicas_stay_spread_when_the_deployment_shrinks() -> None:
    cluster = Cluster(head=0, a=8, b=8)
    cluster.deploy(LIVE)
    cluster.start(LIVE, 3, at="aaa")  # Serve itself would empty the node that runs less
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 8)
    for left in (5, 2):
        cluster.stop(INGRESS, 3)
        assert cluster.at(INGRESS).total() == left
        assert abs(cluster.at(INGRESS)["a"] - cluster.at(INGRESS)["b"]) <= 1


def test_the_newest_replica_of_a_node_is_stopped_and_rather_not_on_the_head() -> None:
    cluster = Cluster(head=8, a=8)
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 4, at=["head", "a", "a", "head"])
    cluster.stop(INGRESS, 1)
    cluster.stop(INGRESS, 1)
    assert [replica.unique_id for replica in cluster.running] == ["001", "002"]
    cluster.stop(INGRESS, 1)
    assert cluster.at(INGRESS) == {"head": 1}


def test_replicas_that_do_not_run_yet_are_stopped_first() -> None:
    cluster = Cluster(head=0, a=8, b=8)
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 2)
    ((starting, _),) = cluster.launch(INGRESS, 1)
    request = DeploymentDownscaleRequest(INGRESS, 1)
    assert cluster.scheduler.schedule({}, {INGRESS: request}) == {INGRESS: {starting}}


def test_an_update_leaves_the_replicas_spread() -> None:
    cluster = Cluster(head=0, a=8, b=8)
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 2)
    old = list(cluster.running)
    cluster.start(INGRESS, 2)
    for replica in old:
        cluster.stopped(replica)
    assert cluster.at(INGRESS) == {"a": 1, "b": 1}


def test_all_replicas_run_on_the_only_node_that_is_left_and_are_updated_there() -> None:
    cluster = Cluster(head=0, a=8, b=8)
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 2)
    (lost,) = (replica for replica, node in cluster.running.items() if node == "b")
    cluster.nodes.set(head=0, a=8)
    cluster.stopped(lost)
    cluster.start(INGRESS, 1)
    assert cluster.at(INGRESS) == {"a": 2}
    cluster.start(INGRESS, 2)
    assert cluster.at(INGRESS) == {"a": 4}


def test_nodes_without_room_or_the_wanted_labels_are_left_out() -> None:
    cluster = Cluster(head=0, a=2, b=8, c=8)
    cluster.nodes.labels = {"a": {"role": "asr"}, "b": {"role": "asr"}}
    cluster.selector = {"role": "asr"}
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 6)
    assert cluster.at(INGRESS) == {"a": 2, "b": 4}


def test_ray_chooses_where_no_node_has_room() -> None:
    cluster = Cluster(head=0, a=1)
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 1)
    ((_, node),) = cluster.launch(INGRESS, 1)
    assert node is None


def test_a_node_on_which_a_replica_failed_to_start_is_not_tried_again_at_once() -> None:
    cluster = Cluster(head=0, a=8, b=8)
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 1, at="a")
    ((failed, node),) = cluster.launch(INGRESS, 1)
    assert node == "b"
    cluster.scheduler.on_replica_stopping(failed)
    nodes = [node for _, node in cluster.launch(INGRESS, 2)]
    assert nodes == ["a", "b"]


def test_a_replica_that_ran_is_replaced_on_its_node() -> None:
    cluster = Cluster(head=0, a=8, b=8)
    cluster.deploy(INGRESS)
    cluster.start(INGRESS, 2)
    (killed,) = (replica for replica, node in cluster.running.items() if node == "b")
    cluster.stopped(killed)
    cluster.start(INGRESS, 1)
    assert cluster.at(INGRESS) == {"a": 1, "b": 1}


def test_serves_controller_makes_this_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_impl, "DeploymentScheduler", default_impl.DeploymentScheduler)
    spread_replicas()
    made = default_impl.create_deployment_scheduler(Nodes(head=8), "head", lambda _: None)
    assert isinstance(made, SpreadingScheduler)
