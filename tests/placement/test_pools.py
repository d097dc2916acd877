"""Which CPUs may be used, and how their cores are grouped."""

from __future__ import annotations

import pytest

from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.model import Pool
from ompaffinity.placement.pools import held_cpus, unusable_cpus, usable_pools
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, Topology
from tests.placement.machines import machine_of, synthetic, with_distances

RULE = rule_for("x86_64")


def pools_of(topology: Topology, span: str = "node", ranks: int = 1) -> list[tuple[int, ...]]:
    """Return the CPUs of each pool."""
    return [
        tuple(cpu for core in pool.cores for cpu in core.cpus)
        for pool in usable_pools(topology, set(), RULE, span=span, ranks=ranks)
    ]


def with_cpu(topology: Topology, number: int, **changes: int) -> Topology:
    cpus = tuple(cpu._replace(**changes) if cpu.id == number else cpu for cpu in topology.cpus)  # type: ignore[arg-type]
    return topology._replace(cpus=cpus)


def test_the_first_reason_counts() -> None:
    topology = synthetic("core:8 pu:1")
    cpus = list(topology.cpus)
    cpus[0] = LogicalCPUInfo(0, online=False, allowed=False)
    cpus[1] = LogicalCPUInfo(1, online=False, allowed=False, hidden=True)
    cpus[2] = cpus[2]._replace(allowed=False, isolated=True)
    cpus[4] = cpus[4]._replace(isolated=True)
    machine = topology._replace(cpus=tuple(cpus))
    expected = {0: "offline", 1: "hidden", 2: "not-allowed", 3: "not-allowed", 4: "isolated"}
    assert unusable_cpus(machine, PlacementRequest(), {3: "x"}) == expected
    named = unusable_cpus(machine, PlacementRequest(cpus=(4, 5, 6)), {3: "x"})
    assert named == {0: "offline", 1: "hidden", 2: "not-allowed", 3: "not-allowed", 7: "not-requested"}


def test_isolated_cpus_are_used_where_no_others_are_allowed() -> None:
    topology = synthetic("core:3 pu:1")
    cpus = tuple(cpu._replace(isolated=cpu.id < 2, allowed=cpu.id < 2) for cpu in topology.cpus)
    assert unusable_cpus(topology._replace(cpus=cpus), PlacementRequest(), {}) == {2: "not-allowed"}


def test_cpus_within_the_requested_nodes_and_lists_only() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    both = unusable_cpus(topology, PlacementRequest(nodes=(0,), cpus=(1, 2)), {})
    assert both == {0: "not-requested", 2: "not-requested", 3: "not-requested"}


def test_a_plan_holds_the_cores_of_its_cpus() -> None:
    topology = with_cpu(synthetic("core:4 pu:2"), 6, physical_core=UNKNOWN)
    topology = with_cpu(topology, 7, physical_core=UNKNOWN)
    avoid = (HeldCPUs("a", (1, 6)), HeldCPUs("b", (0, 2)))
    assert held_cpus(topology, PlacementRequest(avoid=avoid)) == {0: "a", 1: "a", 6: "a", 2: "b", 3: "b"}


def test_cpus_of_unknown_cores_and_siblings_on_two_nodes_are_cores_of_their_own() -> None:
    topology = with_cpu(synthetic("numa:2 core:2 pu:2"), 0, physical_core=UNKNOWN)
    topology = with_cpu(topology, 1, physical_core=UNKNOWN)
    topology = with_cpu(topology, 3, numa_node=1)
    pools = usable_pools(topology, set(), RULE)
    assert [[core.cpus for core in pool.cores] for pool in pools] == [[(0,), (1,), (2,)], [(3,), (4, 5), (6, 7)]]


def test_cpus_on_no_node_are_the_last_pool() -> None:
    topology = with_cpu(synthetic("numa:2 core:2 pu:1"), 0, numa_node=UNKNOWN)
    assert [pool.node for pool in usable_pools(topology, set(), RULE)] == [0, 1, UNKNOWN]


@pytest.mark.parametrize(
    ("span", "ranks", "pools"),
    [
        ("node", 1, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ("package", 1, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("package", 3, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("package", 4, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ("machine", 3, [tuple(range(8))]),
        ("machine", 4, [(0, 1), (2, 3), (4, 5), (6, 7)]),
    ],
)
def test_a_span_joins_nodes_for_fewer_ranks_than_nodes(span: str, ranks: int, pools: list[tuple[int, ...]]) -> None:
    assert pools_of(machine_of([[2, 2], [2, 2]]), span, ranks) == pools


def test_near_nodes_are_side_by_side_in_a_span() -> None:
    far = [[10, 30, 30, 12], [30, 10, 12, 30], [30, 12, 10, 30], [12, 30, 30, 10]]
    machine = with_distances(machine_of([[1, 1, 1, 1]]), far)
    assert pools_of(machine, "package", 2) == [(0, 3, 1, 2)]


def test_nodes_of_unknown_packages_stand_alone_in_a_span_of_packages() -> None:
    machine = machine_of([[2, 2], [2, 2]])
    cpus = tuple(cpu._replace(package=UNKNOWN) if cpu.id < 4 else cpu for cpu in machine.cpus)
    assert pools_of(machine._replace(cpus=cpus), "package") == [(0, 1), (2, 3), (4, 5, 6, 7)]


@pytest.mark.parametrize(("nodes", "pools"), [(1, [UNKNOWN]), (2, [0, 1])])
def test_a_single_node_of_s390x_is_no_information(nodes: int, pools: list[int]) -> None:
    topology = synthetic(f"numa:{nodes} core:2 pu:1", "s390x")
    assert [pool.node for pool in usable_pools(topology, set(), rule_for("s390x"))] == pools


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("numa:1 l3:2 core:2 pu:1", ("l3",)),
        ("numa:1 l3:1 core:4 pu:1", ()),
        ("numa:1 l3:4 core:1 pu:1", ()),
    ],
)
def test_a_level_with_one_group_or_one_for_each_core_is_no_cut_line(text: str, levels: tuple[str, ...]) -> None:
    (pool,) = usable_pools(synthetic(text), set(), RULE)
    assert pool.levels == levels


def whole(pools: tuple[Pool, ...]) -> set[bool]:
    return {pool.whole for pool in pools}


def test_pools_without_nodes_or_of_a_span_are_whole() -> None:
    machine = machine_of([[2, 2]])
    assert whole(usable_pools(machine, set(), RULE)) == {False}
    assert whole(usable_pools(machine, set(), RULE, span="machine")) == {True}
    assert whole(usable_pools(machine._replace(nodes=()), set(), RULE)) == {True}
