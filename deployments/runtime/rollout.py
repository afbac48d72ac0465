"""How a rolling update replaces the replicas of a deployment, so that it ends.

Serve either starts a new replica before it stops an old one (``max_surge_percent`` above 0), which
waits while there is no place for one more, or it stops one replica at a time and starts its
successor in that place, which leaves a gap where there is only one.
"""

from collections.abc import Collection, Sequence

from configs.deployment_settings import Deployment

SURGE = 100


def surge_percent(settings: Deployment) -> int:
    """SURGE for a single replica where nothing but the CPUs of a node bounds their number, else 0.

    A share of a GPU is taken by the old replica, and so may be memory and the nodes with a label.
    """
    scaling, resources = settings.scaling, settings.resources
    per_node = scaling.max_replicas_per_node
    if resources.num_gpus or resources.memory_mb or resources.label_selector:
        return 0
    if scaling.min_replicas > 1 or (per_node is not None and per_node <= scaling.max_replicas):
        return 0
    return SURGE


def has_room(deployments: Collection[Deployment], node_cpus: Sequence[float]) -> bool:
    """Whether a second replica of every deployment that surges has a place at the same time.

    Of the fewest replicas of all deployments, wherever Ray places them: were no node to have room
    for one that waits, less than the largest replica would be free on every node. ``node_cpus`` are
    the logical CPUs of each node that has any.
    """
    used = sum(max(1, d.scaling.min_replicas) * d.resources.num_cpus for d in deployments)
    more = sum(d.resources.num_cpus for d in deployments if surge_percent(d))
    largest = max(d.resources.num_cpus for d in deployments)
    return sum(node_cpus) >= used + more + largest * (len(node_cpus) - 1)


def endless(surge: int, max_replicas: int, per_node: int | None) -> str | None:
    """Why an update with these options of Serve may never end; None if it always does."""
    if not surge or per_node is None or per_node > max_replicas:
        return None
    return (
        f"an update would wait for ever on full nodes: max_surge_percent {surge} starts a new "
        f"replica before an old one stops, and max_replicas_per_node {per_node} leaves no place "
        f"for it beside up to {max_replicas} replicas; set max_surge_percent to 0"
    )
