"""Where Serve starts and stops replicas: each deployment is spread over the nodes.

Serve 2.60 lets Ray place replicas round robin, whatever of their deployment a node runs already,
and a scale-down empties the node with the fewest replicas of all deployments. Either can leave a
whole deployment on one node. ``max_replicas_per_node`` prevents that, but on the last node that is
left neither a deployment nor its update would then ever be complete.
"""

from collections import Counter
from itertools import chain, islice
from typing import Any

from ray.serve._private import default_impl
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.deployment_scheduler import DeploymentScheduler, ReplicaSchedulingRequest


def spread_replicas() -> None:
    """Make Serve's controller use :class:`SpreadingScheduler`.

    Serve calls this function, named by RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH, in the controller
    before it makes its scheduler.
    """
    default_impl.DeploymentScheduler = SpreadingScheduler  # type: ignore[misc]


class SpreadingScheduler(DeploymentScheduler):
    """Starts a replica on the node with the fewest of its deployment, stops one where most are.

    Only nodes with room count, so a deployment is complete on a single node as well. Gangs,
    placement groups and the strategy PACK are left to Serve.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failed_on: dict[DeploymentID, str] = {}

    def _schedule_with_spread_strategy(self) -> None:
        for pending in self._pending_replicas.values():
            for request in list(pending.values()):
                self._schedule_replica(request, "SPREAD", target_node_id=self._node_for(request))

    def _node_for(self, request: ReplicaSchedulingRequest) -> str | None:
        """The node of a new replica; None where Ray has to choose, or to wait for one with room."""
        if request.placement_group_bundles is not None or request.gang_placement_group is not None:
            return None
        nodes = self._get_available_resources_per_node()
        if selector := request.actor_options.get("label_selector"):
            labels = {node: self._cluster_node_info_cache.get_node_labels(node) for node in nodes}
            nodes = self._filter_nodes_by_label_selector(nodes, selector, labels)
        deployment = request.replica_id.deployment_id
        own, all_replicas = self._replicas_by_node(deployment), self._replicas_by_node()
        failed = self._failed_on.pop(deployment, None)
        return min(
            (node for node, free in nodes.items() if free.can_fit(request.requested_resources)),
            key=lambda node: (node == failed, own[node], all_replicas[node]),
            default=None,
        )

    def _replicas_by_node(self, deployment: DeploymentID | None = None) -> Counter[str | None]:
        """Replicas on each node, of one deployment or of all; those that start there included."""
        found: Counter[str | None] = Counter()
        for of_deployment, replicas in self._running_replicas.items():
            if deployment in (None, of_deployment):
                found.update(replicas.values())
        for of_deployment, launching in self._launching_replicas.items():
            if deployment in (None, of_deployment):
                found.update(info.target_node_id for info in launching.values())
        return found

    def on_replica_stopping(self, replica_id: ReplicaID) -> None:
        """Start the next replica elsewhere if this one has failed to start on its node."""
        launching = self._launching_replicas[replica_id.deployment_id].get(replica_id)
        if launching is not None and launching.target_node_id is not None:
            self._failed_on[replica_id.deployment_id] = launching.target_node_id
        super().on_replica_stopping(replica_id)

    def on_deployment_deleted(self, deployment_id: DeploymentID) -> None:
        self._failed_on.pop(deployment_id, None)
        super().on_deployment_deleted(deployment_id)

    def _get_replicas_to_stop(
        self,
        deployment_id: DeploymentID,
        max_num_to_stop: int,
        gang_id_by_replica: dict[ReplicaID, str] | None = None,
        replicas_by_gang_id: dict[str, set[ReplicaID]] | None = None,
        gang_size: int | None = None,
    ) -> set[ReplicaID]:
        """First those that do not run, then the newest on the node with the most."""
        info = self._deployments[deployment_id]
        if gang_id_by_replica is not None or info.fallback_strategy or self._use_pack_strategy():
            return super()._get_replicas_to_stop(
                deployment_id, max_num_to_stop, gang_id_by_replica, replicas_by_gang_id, gang_size
            )
        starting = (
            self._pending_replicas[deployment_id],
            self._launching_replicas[deployment_id],
            self._recovering_replicas[deployment_id],
        )
        running = self._running_replicas[deployment_id].items()  # the oldest first
        seen: Counter[str] = Counter()
        ranked = []
        for age, (replica, node) in enumerate(running):
            seen[node] += 1
            ranked.append((seen[node], node != self._head_node_id, age, replica))
        last = (replica for *_, replica in sorted(ranked, key=lambda r: r[:3], reverse=True))
        return set(islice(chain(*starting, last), max_num_to_stop))
