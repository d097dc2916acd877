"""Plans for this machine keep what a plan promises."""

from __future__ import annotations

from typing import Any

import pytest

from ompaffinity.ids import parse_id_list
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology
from tests.guests.inside.common import nodes_with_memory


@pytest.mark.parametrize("ranks", range(1, 9))
def test_every_cpu_is_accounted_for_and_belongs_where_it_is(guest: dict[str, Any], ranks: int) -> None:
    if ranks > guest["cpus"]:
        ranks = guest["cpus"]
    topology = load_topology()
    plan = plan_document(make_plan(topology, PlacementRequest(tensor_parallel_size=ranks)))
    assert len(plan["ranks"]) == ranks
    placed = [cpu for rank in plan["ranks"] for cpu in (*rank["cpus"], *rank["helper_cpus"])]
    left_out = [cpu for group in plan["left_out"] for cpu in parse_id_list(group["cpus"])]
    assert sorted(placed + left_out) == [cpu.id for cpu in topology.cpus]
    cores = len({cpu.physical_core for cpu in topology.cpus})
    owners: dict[int, set[int]] = {}
    for rank in plan["ranks"]:
        assert rank["cpus"]
        homes = {topology.cpu(cpu).numa_node for cpu in rank["cpus"]}
        for cpu in (*rank["cpus"], *rank["helper_cpus"]):
            owners.setdefault(topology.cpu(cpu).physical_core, set()).add(rank["rank"])
        if not topology.nodes:
            assert rank["nodes"] == []
            continue
        assert set(rank["nodes"]) <= set(nodes_with_memory())
        for home in homes:
            distances = {node: topology.distance(home, node) for node in nodes_with_memory()}
            # Equally near nodes are used in turn.
            nearest = {node for node, distance in distances.items() if distance == min(distances.values())}
            assert nearest & set(rank["nodes"])
    if ranks <= cores:
        assert all(len(ranks_on_core) == 1 for ranks_on_core in owners.values())
