"""``--span auto``: each rank gets equally many whole nodes of one package, with as many cores as can be."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from ompaffinity.topology.model import UNKNOWN, Limits, LogicalCPUInfo, MemoryNodeInfo, Topology
from tests.placement.machines import codes, machine_of, with_distances

GIB = 2**30


def cores_of(plan: Plan) -> list[int]:
    """The number of cores of each rank, helper cores included (one thread per core)."""
    return [len(rank.cpus) + len(rank.helper_cpus) for rank in plan.ranks]


def nodes_of(plan: Plan) -> list[tuple[int, ...]]:
    return [rank.nodes for rank in plan.ranks]


def independent(ranks: int, **options: Any) -> PlacementRequest:
    return PlacementRequest(data_parallel_size=ranks, **options)


def largest_smallest_of_groups(packages: list[list[int]], ranks: int, count: int) -> int:
    """Try every way to choose disjoint groups of so many nodes, each of one package."""
    first = 0
    groups = []
    for package in packages:
        nodes = range(first, first + len(package))
        groups += [(set(group), sum(package[node - first] for node in group)) for group in combinations(nodes, count)]
        first += len(package)
    best = 0
    for chosen in combinations(groups, ranks):
        if sum(len(nodes) for nodes, _ in chosen) == len(set[int]().union(*(nodes for nodes, _ in chosen))):
            best = max(best, min(size for _, size in chosen))
    return best


def largest_smallest_in_nodes(sizes: list[int], ranks: int) -> int:
    return max(least for least in range(max(sizes) + 1) if not least or sum(size // least for size in sizes) >= ranks)


MACHINES = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3)


@given(MACHINES, st.data())
def test_the_smallest_rank_gets_as_many_cores_as_groups_of_nodes_allow(
    packages: list[list[int]], data: st.DataObject
) -> None:
    sizes = [size for package in packages for size in package]
    ranks = data.draw(st.integers(1, min(len(sizes), 4)))
    plan = make_plan(machine_of(packages), independent(ranks))
    by_count = {
        count: largest_smallest_of_groups(packages, ranks, count) for count in range(1, max(map(len, packages)) + 1)
    }
    by_node = largest_smallest_in_nodes(sizes, ranks)
    best = max(by_count.values())
    assert min(cores_of(plan)) == max(best, by_node)
    if best >= by_node:
        # Of equal ones the larger groups win: memory bandwidth grows with the nodes.
        expected = max(count for count, smallest in by_count.items() if smallest == best)
        assert {len(nodes) for nodes in nodes_of(plan)} == {expected}


@given(MACHINES, st.data())
def test_no_rank_gets_fewer_cores_than_on_single_nodes(packages: list[list[int]], data: st.DataObject) -> None:
    machine = machine_of(packages)
    ranks = data.draw(st.integers(1, len(machine.cpus)))
    auto, node = (make_plan(machine, independent(ranks, span=span)) for span in ("auto", "node"))
    assert all(ours >= theirs for ours, theirs in zip(sorted(cores_of(auto)), sorted(cores_of(node))))


@given(MACHINES, st.data())
def test_ranks_of_several_nodes_have_whole_nodes_of_one_package(packages: list[list[int]], data: st.DataObject) -> None:
    machine = machine_of(packages)
    ranks = data.draw(st.integers(1, len(machine.nodes)))
    tensor = data.draw(st.sampled_from([size for size in range(1, ranks + 1) if ranks % size == 0]))
    request = PlacementRequest(tensor_parallel_size=tensor, data_parallel_size=ranks // tensor)
    for rank in make_plan(machine, request).ranks:
        owned = {*rank.cpus, *rank.helper_cpus}
        if len(rank.nodes) > 1:
            assert owned == {cpu for node in rank.nodes for cpu in machine.node(node).cpus}
            assert len({machine.cpu(cpu).package for cpu in owned}) == 1
            assert rank.memory_policy == "interleave"


@pytest.mark.parametrize(
    ("packages", "ranks", "nodes"),
    [
        ([[4] * 4] * 2, 1, [(0, 1, 2, 3)]),
        ([[4] * 4] * 2, 2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ([[4] * 4] * 2, 3, [(0, 1), (2, 3), (4, 5)]),
        ([[4] * 4] * 2, 4, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ([[43, 43, 42]] * 2, 1, [(0, 1, 2)]),
        ([[43, 43, 42]] * 2, 2, [(0, 1, 2), (3, 4, 5)]),
        ([[43, 43, 42]] * 2, 3, [(0,), (1,), (2,)]),
        ([[24], [24]], 1, [(0,)]),
    ],
)
def test_the_nodes_of_tensor_parallel_ranks(
    packages: list[list[int]], ranks: int, nodes: list[tuple[int, ...]]
) -> None:
    plan = make_plan(machine_of(packages), PlacementRequest(tensor_parallel_size=ranks))
    assert nodes_of(plan) == nodes


@pytest.mark.parametrize(
    ("packages", "nodes"),
    [
        # 1 of 20 cores is 5 %, 2 of 20 are not.
        ([[20, 19], [20]], [(0,), (1,)]),
        ([[20, 18], [20]], [(0,), (2,)]),
        # 5 % of 11 cores, rounded up, is 1 core.
        ([[11, 10], [11]], [(0,), (1,)]),
        # Below 10 cores no core is given up.
        ([[9, 8], [9]], [(0,), (2,)]),
        # With equal ranks, more cores come before one package.
        ([[20, 20], [30]], [(0,), (2,)]),
    ],
)
def test_a_tensor_parallel_group_stays_in_one_package_at_a_small_cost(
    packages: list[list[int]], nodes: list[tuple[int, ...]]
) -> None:
    # Equal groups of two nodes do not exist, so each rank gets one node.
    plan = make_plan(machine_of(packages), PlacementRequest(tensor_parallel_size=2))
    assert nodes_of(plan) == nodes


def test_each_of_several_tensor_parallel_groups_stays_in_one_package() -> None:
    machine = machine_of([[8, 8, 8], [8, 8, 8]])
    plan = make_plan(machine, PlacementRequest(tensor_parallel_size=2, data_parallel_size=2))
    packages = [{machine.cpu(cpu).package for rank in plan.ranks[at : at + 2] for cpu in rank.cpus} for at in (0, 2)]
    assert packages == [{0}, {1}]


@pytest.mark.parametrize(("ranks", "smallest", "nodes"), [(2, 39, 6), (3, 26, 4), (4, 18, 3), (6, 13, 2)])
def test_many_nodes_of_different_sizes_make_nearly_even_ranks(ranks: int, smallest: int, nodes: int) -> None:
    # 78 cores in all; every grouping of so many nodes is not tried.
    plan = make_plan(machine_of([[*range(12, 0, -1)]]), independent(ranks))
    assert min(cores_of(plan)) == smallest
    assert [len(of_rank) for of_rank in nodes_of(plan)] == [nodes] * ranks


def test_near_nodes_are_grouped() -> None:
    # Each node is near the one four places on.
    matrix = [[10 if one == two else 11 if one % 4 == two % 4 else 20 for two in range(8)] for one in range(8)]
    machine = with_distances(machine_of([[4] * 8]), matrix)
    assert nodes_of(make_plan(machine, independent(4))) == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_a_tensor_parallel_group_gets_near_nodes_of_its_package() -> None:
    # Each node is near the one two places on.
    matrix = [[10 if one == two else 11 if one % 2 == two % 2 else 20 for two in range(8)] for one in range(8)]
    machine = with_distances(machine_of([[4] * 4, [4] * 4]), matrix)
    plan = make_plan(machine, PlacementRequest(tensor_parallel_size=2, data_parallel_size=4))
    assert nodes_of(plan) == [(0,), (2,), (1,), (3,), (4,), (6,), (5,), (7,)]


def test_a_second_server_gets_the_other_package() -> None:
    machine = machine_of([[43, 43, 42], [43, 43, 42]])
    first = make_plan(machine, PlacementRequest(tensor_parallel_size=3))
    held = HeldCPUs("first", tuple(cpu for rank in first.ranks for cpu in rank.affinity))
    second = make_plan(machine, PlacementRequest(tensor_parallel_size=3, avoid=(held,)))
    assert nodes_of(second) == [(3,), (4,), (5,)]


@pytest.mark.parametrize(("quota", "nodes"), [(4.0, (0,)), (8.0, (0, 1)), (9.0, (0, 1, 2)), (None, (0, 1, 2, 3))])
def test_a_quota_limits_the_nodes_of_a_rank(quota: float | None, nodes: tuple[int, ...]) -> None:
    machine = machine_of([[4] * 4])._replace(limits=Limits(cpu_quota=quota))
    (rank,) = make_plan(machine, PlacementRequest()).ranks
    assert rank.nodes == nodes


def test_a_node_over_several_packages_or_without_one_stands_alone() -> None:
    machine = machine_of([[4], [4], [4]])
    over_two = machine._replace(cpus=tuple(cpu._replace(package=cpu.id % 2) for cpu in machine.cpus))
    unknown = machine._replace(cpus=tuple(cpu._replace(package=UNKNOWN) for cpu in machine.cpus))
    for changed in (over_two, unknown):
        assert nodes_of(make_plan(changed, PlacementRequest())) == [(0,)]


def test_gpu_ranks_stay_on_the_node_of_their_gpu() -> None:
    plan = make_plan(machine_of([[4] * 4]), PlacementRequest(numa_bind_nodes=(2,)))
    assert nodes_of(plan) == [(2,)]


def test_idle_nodes_are_reported_with_the_option_that_uses_them() -> None:
    plan = make_plan(machine_of([[8, 8], [8, 8]]), PlacementRequest())
    (message,) = [message for message in plan.messages if message.code == "nodes-unused"]
    assert "2 of 4" in message.message
    assert "--span machine" in message.message


# Memory first.


def with_memory(machine: Topology, *nodes: int) -> Topology:
    """The same machine with memory on these nodes alone."""
    found = {node.id: node.id in nodes for node in machine.nodes}
    changed = (node._replace(has_memory=found[node.id], total_memory=GIB * found[node.id]) for node in machine.nodes)
    return machine._replace(nodes=tuple(changed))


@pytest.mark.parametrize(
    ("ranks", "cpus", "memory"),
    [
        (1, [(4, 8)], [(1, 2)]),
        (2, [(4,), (8,)], [(1,), (2,)]),
        (4, [(0,), (4,), (8,), (12,)], [(1,), (1,), (2,), (2,)]),
    ],
)
def test_nodes_with_memory_come_first(ranks: int, cpus: list[tuple[int, ...]], memory: list[tuple[int, ...]]) -> None:
    """Of the memoryless nodes' ranks each uses the nearest memory, equally near nodes in turn."""
    machine = with_memory(machine_of([[4, 4, 4, 4]]), 1, 2)
    plan = make_plan(machine, PlacementRequest(tensor_parallel_size=ranks))
    homes = [sorted({machine.cpu(cpu).numa_node for cpu in rank.cpus}) for rank in plan.ranks]
    assert [tuple(machine.node(node).cpus[0] for node in of_rank) for of_rank in homes] == cpus
    assert nodes_of(plan) == memory


def test_a_node_whose_memory_is_not_allowed_does_not_count() -> None:
    machine = machine_of([[4], [4]])
    nodes = tuple(node._replace(allowed=node.id == 1) for node in machine.nodes)
    plan = make_plan(machine._replace(nodes=nodes), PlacementRequest())
    assert plan.ranks[0].cpus[0] in machine.node(1).cpus
    assert nodes_of(plan) == [(1,)]
    (unused,) = [group for group in plan.left_out if group.reason == "unused-node"]
    assert "may use no memory there" in unused.detail


@pytest.mark.parametrize(("ranks", "uses_homeless"), [(1, False), (2, False), (3, True)])
def test_cpus_on_no_node_come_last(ranks: int, uses_homeless: bool) -> None:
    machine = machine_of([[4, 4], [8]])
    homeless = {cpu.id for cpu in machine.cpus if cpu.numa_node == 2}
    cpus = tuple(cpu._replace(numa_node=UNKNOWN) if cpu.id in homeless else cpu for cpu in machine.cpus)
    plan = make_plan(machine._replace(cpus=cpus, nodes=machine.nodes[:2]), independent(ranks))
    used = {cpu for rank in plan.ranks for cpu in rank.cpus}
    assert bool(used & homeless) is uses_homeless
    assert "cpus-on-no-node" in codes(plan)
    unused = [group.detail for group in plan.left_out if group.reason == "unused-node"]
    assert unused == ([] if uses_homeless else ["on no NUMA node; --span machine uses their cores"])


# Nodes that are one.


def fake_nodes(nodes: int, *, on_first: bool = False, others: int = 0) -> Topology:
    """``numa=fake``: nodes at the local distance, with the same CPUs or all of them on the first; and real ones."""
    ids = range(nodes + others)
    distances = {one: {two: 10 if one == two or max(one, two) < nodes else 20 for two in ids} for one in ids}
    cpus = [LogicalCPUInfo(cpu, cpu, 0, 0) for cpu in range(4)]
    cpus += [LogicalCPUInfo(cpu, cpu, nodes + cpu // 4 - 1, cpu // 4) for cpu in range(4, 4 + 4 * others)]
    lists: list[tuple[int, ...]] = [(0, 1, 2, 3) if not on_first or node == 0 else () for node in range(nodes)]
    lists += [tuple(range(4 * node, 4 * node + 4)) for node in range(1, others + 1)]
    found = (MemoryNodeInfo(GIB, GIB, node, lists[node], True, distances=distances[node]) for node in ids)
    return Topology("aarch64", "drawn", "drawn", tuple(cpus), tuple(found))


@pytest.mark.parametrize("on_first", [False, True])
@pytest.mark.parametrize("nodes", [2, 8])
def test_the_whole_memory_of_fake_nodes_is_local(nodes: int, on_first: bool) -> None:
    plan = make_plan(fake_nodes(nodes, on_first=on_first), independent(2, utilization=1.0))
    assert nodes_of(plan) == [tuple(range(nodes))] * 2
    assert [rank.memory_policy for rank in plan.ranks] == ["none", "none"]
    assert [rank.memory_budget for rank in plan.ranks] == [nodes * GIB // 2] * 2


def test_fake_nodes_beside_a_real_one_are_bound_together() -> None:
    plan = make_plan(fake_nodes(4, others=1), independent(2, reserve=0))
    assert [(rank.nodes, rank.memory_policy) for rank in plan.ranks] == [((0, 1, 2, 3), "bind"), ((4,), "bind")]


@pytest.mark.parametrize(
    ("weights", "policy"),
    [((1, 1), "interleave"), ((3, 1), "weighted-interleave"), ((UNKNOWN, UNKNOWN), "interleave")],
)
def test_interleave_is_weighted_where_the_weights_differ(weights: tuple[int, ...], policy: str) -> None:
    machine = machine_of([[4, 4]])
    nodes = tuple(node._replace(interleave_weight=weight) for node, weight in zip(machine.nodes, weights))
    plan = make_plan(machine._replace(nodes=nodes), PlacementRequest())
    assert plan.ranks[0].memory_policy == policy
