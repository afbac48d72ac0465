"""How replicas are replaced: every update ends, and without a gap where there is room."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.deployment_settings import Deployment
from configs.settings import SpeechArgs
from deployments.runtime.options import serve_options
from deployments.runtime.rollout import endless, has_room, surge_percent

CONFIGS = ["serve_config.yaml", "configs/demo.yaml", "configs/cpu.yaml", "configs/gpu.yaml"]


def deployment(**fields: Any) -> Deployment:
    return Deployment.model_validate(fields)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scaling": {"min_replicas": 0, "max_replicas": 4}},
        {"scaling": {"max_replicas": 1, "max_replicas_per_node": 2}},
    ],
)
def test_a_single_replica_is_replaced_without_a_gap(settings: dict[str, Any]) -> None:
    assert serve_options(deployment(**settings), 1)["max_surge_percent"] == 100


@pytest.mark.parametrize(
    "settings",
    [
        {"resources": {"num_gpus": 0.5}},
        {"resources": {"memory_mb": 4096}},
        {"resources": {"label_selector": {"role": "asr"}}},
        {"scaling": {"min_replicas": 2, "max_replicas": 8}},
        {"scaling": {"max_replicas": 1, "max_replicas_per_node": 1}},
        {"scaling": {"max_replicas": 8, "max_replicas_per_node": 2}},
    ],
)
def test_a_replica_is_stopped_first_where_there_may_be_no_place_for_one_more(
    settings: dict[str, Any],
) -> None:
    assert serve_options(deployment(**settings), 1)["max_surge_percent"] == 0


@pytest.mark.parametrize(
    ("nodes", "room"),
    [
        ([10], True),  # 6 for the replicas and 4 for one more of each
        ([9.9], False),
        ([6.5, 6.5], True),
        ([6.4, 6.4], False),  # 2.9 may be free on each, and the large replica needs 3
        ([4, 4, 4, 4], False),
        ([5, 5, 5, 5], True),
        ([], False),
    ],
)
def test_room_for_all_that_surge_is_on_one_node_wherever_the_replicas_are(
    nodes: list[float], room: bool
) -> None:
    small, large = (deployment(resources={"num_cpus": cpus}) for cpus in (1, 3))
    pair = deployment(scaling={"min_replicas": 2, "max_replicas": 2}, resources={"num_cpus": 1})
    assert has_room([small, large, pair], nodes) is room


@dataclass
class Rollout:
    """One deployment in an update, as Serve 2.60 decides (DeploymentState), with its replicas."""

    cpus: float
    target: int
    surge: int
    per_node: int | None
    old: list[int] = field(default_factory=list)
    """The node of each old replica that runs."""
    new: list[int | None] = field(default_factory=list)
    """The node of each new one, None while it waits for a place."""

    @property
    def running(self) -> int:
        return len(self.old) + len(self.new) - self.new.count(None)

    def step(self) -> None:
        """Start and stop replicas."""
        total = len(self.old) + len(self.new)
        batch = max(1, int(0.2 * self.target))
        if self.surge and self.old:
            places = math.ceil(self.surge * self.target / 100) + self.target - total
            start, stop = min(self.target - len(self.new), places), self.running - self.target
        else:
            stop = batch - (self.target - self.running)
            stop = max(0, min(stop, len(self.old)))
            start = self.target - total + stop
        self.new += [None] * max(0, start)
        del self.old[: max(0, min(stop, batch))]

    def fits(self, node: int, free: list[float]) -> bool:
        here = self.old.count(node) + self.new.count(node)
        return free[node] >= self.cpus and (self.per_node is None or here < self.per_node)


def free_cpus(rollouts: list[Rollout], nodes: list[float]) -> list[float]:
    return [
        cpus - sum(r.cpus * (r.old.count(node) + r.new.count(node)) for r in rollouts)
        for node, cpus in enumerate(nodes)
    ]


def place(rollouts: list[Rollout], nodes: list[float], chance: random.Random) -> bool:
    """Place a replica that waits on any node with room; False where there is none."""
    waiting = [
        (rollout, node)
        for rollout in rollouts
        if None in rollout.new
        for node in range(len(nodes))
        if rollout.fits(node, free_cpus(rollouts, nodes))
    ]
    if waiting:
        rollout, node = chance.choice(waiting)
        rollout.new[rollout.new.index(None)] = node
    return bool(waiting)


def ends(rollouts: list[Rollout], nodes: list[float], seed: int) -> bool:
    """Whether an update from replicas that run anywhere ends, whatever Ray chooses."""
    chance = random.Random(seed)
    for rollout in sorted(rollouts, key=lambda r: -r.cpus):
        for _ in range(rollout.target):
            room = [n for n in range(len(nodes)) if rollout.fits(n, free_cpus(rollouts, nodes))]
            rollout.old.append(chance.choice(room) if room else -1)
    if any(-1 in rollout.old for rollout in rollouts):
        return True  # the old version never ran on these nodes
    for _ in range(200):
        for rollout in rollouts:
            rollout.step()
        while place(rollouts, nodes, chance):
            pass
        if not any(rollout.old or None in rollout.new for rollout in rollouts):
            return True
    return False


def rollouts_of(deployments: Sequence[Deployment], nodes: list[float]) -> list[Rollout]:
    surge = has_room(deployments, nodes)
    return [
        Rollout(
            d.resources.num_cpus,
            max(1, d.scaling.min_replicas),
            surge_percent(d) if surge else 0,
            d.scaling.max_replicas_per_node,
        )
        for d in deployments
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("config", CONFIGS)
def test_an_update_of_what_we_ship_ends_on_full_nodes_and_on_larger_ones(
    repository: Path, config: str, count: int
) -> None:
    document = yaml.safe_load((repository / config).read_text(encoding="utf-8"))
    deployments = SpeechArgs(**document["applications"][0]["args"]).deployments()
    full = sum(d.resources.num_cpus * max(1, d.scaling.min_replicas) for d in deployments)
    # On several nodes the largest replica needs a place that is not scattered over them.
    full += max(d.resources.num_cpus for d in deployments) * (count - 1)
    for factor in (1.0, 1.1, 1.3, 1.6, 2.0, 3.0):
        nodes = [full * factor / count] * count
        for seed in range(10):
            assert ends(rollouts_of(deployments, nodes), nodes, seed), (nodes, seed)


def test_a_surge_beside_replicas_that_fill_their_nodes_never_ends() -> None:
    """The fault that the options avoid: two replicas of the ingress, at most two on the node."""
    assert not ends([Rollout(1, 2, 100, 2)], [16.0], seed=0)
    assert ends([Rollout(1, 2, 0, 2)], [16.0], seed=0)
    assert endless(100, 2, 2) is not None
    assert endless(0, 2, 2) is None


@pytest.mark.parametrize(("replicas", "per_node"), [(1, 1), (2, 2), (8, 2), (1, None), (1, 2)])
def test_what_is_not_named_endless_ends_on_one_node(replicas: int, per_node: int | None) -> None:
    alone = [Rollout(0, min(replicas, per_node or replicas), 100, per_node)]
    assert (endless(100, replicas, per_node) is None) is ends(alone, [1.0], seed=0)
