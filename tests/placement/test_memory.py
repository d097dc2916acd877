"""Which memory node is nearest to CPUs, and what there is where none has memory."""

from __future__ import annotations

import pytest

from ompaffinity.devices.model import GPUHome
from ompaffinity.errors import NoMemoryNodeError
from ompaffinity.placement.memory import allowed_memory_nodes, nearest_memory_node, usable_memory_nodes
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.model import UNKNOWN, Limits, Topology
from tests.placement.machines import synthetic, without_nodes

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


GIB = 2**30


def budgets(topology: Topology, ranks: int = 1, **request: object) -> list[int | None]:
    planned = PlacementRequest(data_parallel_size=ranks, utilization=0.5, span="node", **request)  # type: ignore[arg-type]
    return [rank.memory_budget for rank in make_plan(topology, planned).ranks]


def test_ranks_of_a_node_share_its_memory_evenly() -> None:
    nodes = tuple(node._replace(total_memory=(node.id + 1) * 8 * GIB) for node in FOUR.nodes)
    topology = FOUR._replace(nodes=nodes)
    assert budgets(topology, 4) == [4 * GIB, 8 * GIB, 12 * GIB, 16 * GIB]
    assert budgets(topology, 8) == [2 * GIB] * 2 + [4 * GIB] * 2 + [6 * GIB] * 2 + [8 * GIB] * 2


def test_the_limit_of_a_control_group_is_shared_by_all_ranks() -> None:
    nodes = tuple(node._replace(total_memory=8 * GIB) for node in FOUR.nodes)
    for limit, budget in ((8 * GIB, GIB), (320 * GIB, 4 * GIB)):
        limits = Limits(memory_limit_bytes=limit)
        assert budgets(FOUR._replace(nodes=nodes, limits=limits), 4) == [budget] * 4


def test_unknown_memory_has_no_budget_but_for_a_limit() -> None:
    nodes = tuple(node._replace(total_memory=UNKNOWN) for node in FOUR.nodes)
    assert budgets(FOUR._replace(nodes=nodes), 2) == [None, None]
    limits = Limits(memory_limit_bytes=8 * GIB)
    assert budgets(FOUR._replace(nodes=nodes, limits=limits), 2) == [2 * GIB] * 2
    assert budgets(machine(0, 1, 2, 3)) == [None]


def test_without_numa_information_all_memory_is_shared() -> None:
    topology = without_nodes(FOUR)
    assert budgets(topology._replace(total_memory=8 * GIB), 2) == [2 * GIB] * 2
    assert budgets(topology._replace(total_memory=UNKNOWN), 2) == [None] * 2


def test_an_unbound_rank_has_its_part_of_the_nodes_that_may_be_used() -> None:
    nodes = tuple(node._replace(total_memory=8 * GIB) for node in FOUR.nodes)
    nodes = (nodes[0], nodes[1]._replace(allowed=False), nodes[2]._replace(device_memory=True), nodes[3])
    request = PlacementRequest(tensor_parallel_size=2, numa_bind=True, gpu_homes=(GPUHome(()),) * 2, utilization=1.0)
    plan = make_plan(FOUR._replace(nodes=nodes), request)
    assert [(rank.bound, rank.memory_budget) for rank in plan.ranks] == [(False, 8 * GIB)] * 2


def test_a_node_within_the_requested_ones_needs_memory_that_may_be_used() -> None:
    assert allowed_memory_nodes(machine(0, forbidden=(1,)), within=(0, 1, 2)) == (2,)
    assert allowed_memory_nodes(machine(0, forbidden=(1,))) == (2, 3)


@pytest.mark.parametrize(
    ("weights", "policy"),
    [((1, 2, 3, 4), "weighted-interleave"), ((2, 2, 2, 2), "interleave"), ((1, 2, 3, UNKNOWN), "interleave")],
)
def test_a_rank_on_several_nodes_interleaves(weights: tuple[int, ...], policy: str) -> None:
    nodes = tuple(node._replace(interleave_weight=weight) for node, weight in zip(FOUR.nodes, weights))
    plan = make_plan(FOUR._replace(nodes=nodes), PlacementRequest(span="machine"))
    assert [(rank.nodes, rank.memory_policy) for rank in plan.ranks] == [((0, 1, 2, 3), policy)]


@pytest.mark.parametrize(("with_memory", "policy"), [((0,), "none"), ((0, 1), "bind"), ((0, 1, 2), "bind")])
def test_binds_memory_only_if_several_nodes_have_some(with_memory: tuple[int, ...], policy: str) -> None:
    topology = machine(*({0, 1, 2, 3} - set(with_memory)))
    (rank,) = make_plan(topology, PlacementRequest(nodes=(0,))).ranks
    assert (rank.nodes, rank.memory_policy) == ((0,), policy)


def test_a_requested_policy_needs_nodes() -> None:
    request = PlacementRequest(memory_policy="preferred")
    assert make_plan(FOUR, request).ranks[0].memory_policy == "preferred"
    assert make_plan(without_nodes(FOUR), request).ranks[0].memory_policy == "none"


def test_ranks_on_nodes_without_memory_use_equally_near_ones_in_turn() -> None:
    topology = synthetic("numa:4 core:2 pu:1")
    nodes = tuple(node._replace(has_memory=node.id > 1) for node in topology.nodes)
    plan = make_plan(topology._replace(nodes=nodes), PlacementRequest(data_parallel_size=4, span="node"))
    assert [rank.nodes for rank in plan.ranks] == [(2,), (3,), (2,), (3,)]
