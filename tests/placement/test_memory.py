"""Which memory node is nearest to CPUs, and what there is where none has memory."""

from __future__ import annotations

import pytest

from ompaffinity.errors import NoMemoryNodeError
from ompaffinity.placement.memory import allowed_memory_nodes, nearest_memory_node, usable_memory_nodes
from ompaffinity.topology.model import Topology
from tests.placement.machines import synthetic

FOUR = synthetic("package:2 numa:2 core:2 pu:1")
DISTANCES = ({0: 10, 1: 12, 2: 20, 3: 22}, {0: 12, 1: 10, 2: 22, 3: 24}, {0: 20, 1: 22, 2: 10, 3: 12})


def machine(*without_memory: int, forbidden: tuple[int, ...] = ()) -> Topology:
    """Return a machine of four nodes with distances, of which some have no memory or are not allowed."""
    distances = (*DISTANCES, {0: 22, 1: 24, 2: 12, 3: 10})
    nodes = tuple(
        node._replace(
            distances=distances[node.id],
            has_memory=node.id not in without_memory,
            total_memory=0 if node.id in without_memory else 2**30,
            allowed=node.id not in forbidden,
        )
        for node in FOUR.nodes
    )
    return FOUR._replace(nodes=nodes)


def cpus_of(topology: Topology, node: int) -> tuple[int, ...]:
    return topology.node(node).cpus


@pytest.mark.parametrize("node", range(4))
def test_the_own_node_is_nearest(node: int) -> None:
    assert nearest_memory_node(machine(), cpus_of(FOUR, node)) == node


def test_without_memory_there_the_nearest_other_node_counts() -> None:
    assert nearest_memory_node(machine(0), cpus_of(FOUR, 0)) == 1
    assert nearest_memory_node(machine(0, 1), cpus_of(FOUR, 0)) == 2
    assert nearest_memory_node(machine(forbidden=(3,)), cpus_of(FOUR, 3)) == 2


def test_the_sum_over_all_cpus_decides() -> None:
    assert nearest_memory_node(machine(), (*cpus_of(FOUR, 3), cpus_of(FOUR, 0)[0])) == 3


def test_equal_distances_go_to_the_lowest_node() -> None:
    assert nearest_memory_node(machine(0, 3), (cpus_of(FOUR, 0)[0], cpus_of(FOUR, 3)[0])) == 2
    assert nearest_memory_node(machine(), (cpus_of(FOUR, 2)[0], cpus_of(FOUR, 3)[0])) == 2


def test_only_the_nodes_within_count() -> None:
    assert nearest_memory_node(machine(), cpus_of(FOUR, 0), within=(2, 3)) == 2
    assert allowed_memory_nodes(machine(1), within=(1, 2)) == usable_memory_nodes(machine(1), within=(1, 2)) == (2,)


def test_where_no_allowed_node_has_memory_there_is_none() -> None:
    assert allowed_memory_nodes(machine(0, 1, 2, 3)) == ()
    with pytest.raises(NoMemoryNodeError, match="no NUMA node that this process may use has memory"):
        usable_memory_nodes(machine(0, 1, 2, 3))
    with pytest.raises(NoMemoryNodeError):
        nearest_memory_node(machine(forbidden=(0, 1, 2, 3)), (0,))
