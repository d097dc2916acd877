from __future__ import annotations

import collections
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.cut import PoolCuts
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.pools import near_order, unusable_cpus, usable_pools
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.placement.split import largest_smallest, split_cores
from tests.placement.machines import (
    codes,
    plan_for,
    pool_of,
    reasons,
    synthetic,
    threads,
    with_distances,
    without_nodes,
)
from tests.strategies import topologies

if TYPE_CHECKING:
    from collections.abc import Callable

    from ompaffinity.placement.model import Pool
    from ompaffinity.topology.model import Topology


def brute_force_smallest(sizes: list[int], ranks: int) -> int:
    """Try every way to give ranks to groups."""

    def best(groups: list[int], left: int) -> int:
        if not groups:
            return 0 if left else 10**9
        options = [best(groups[1:], left)]
        options += [
            min(groups[0] // here, best(groups[1:], left - here)) for here in range(1, min(left, groups[0]) + 1)
        ]
        return max(options)

    return best(sizes, ranks)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 8))
def test_the_smallest_rank_is_as_large_as_can_be(sizes: list[int], ranks: int) -> None:
    assume(ranks <= sum(sizes))
    assert largest_smallest(sizes, ranks) == brute_force_smallest(sizes, ranks)


def rule(pools: list[Pool], counts: tuple[int, ...], distance: Callable[[int, int], int], spread: bool) -> list[Any]:
    """What a way to give ranks to nodes is worth, by the issue's order: the smaller, the better."""
    used = [(pool, count) for pool, count in zip(pools, counts) if count]
    cuts = [PoolCuts().cut(pool, count) for pool, count in used]
    placed = sum(len(share) for cut in cuts for share in cut.shares)
    nodes = [pool.node for pool, _ in used]
    packages = {core.package for pool, _ in used for core in pool.cores}
    return [
        -min(len(pool.cores) // count for pool, count in used),
        sum(cut.straddling("l3") for cut in cuts),
        sum(cut.straddling("cluster") for cut in cuts),
        sum(len(pool.cores) for pool in pools) - placed,
        -len(packages) if spread else 0,
        sum(distance(first, second) for first, second in itertools.combinations(nodes, 2)),
        nodes,
    ]


def smallest_share(pools: list[Pool], counts: tuple[int, ...]) -> int:
    cuts = [PoolCuts().cut(pool, count) for pool, count in zip(pools, counts) if count]
    return min(len(share) for cut in cuts for share in cut.shares)


@st.composite
def small_machines(draw: st.DrawFn) -> tuple[list[Pool], Callable[[int, int], int]]:
    """Draw the pools of a machine with one to four nodes, and its distances."""
    count = draw(st.integers(1, 4))
    shapes = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=2), min_size=1, max_size=2))
    cluster = draw(st.sampled_from((0, 0, 2)))
    pools = [
        pool_of(draw(st.sampled_from(shapes)), cluster, node=2 * node, package=draw(st.integers(0, 2)))
        for node in range(count)
    ]
    apart = draw(st.lists(st.sampled_from((11, 20, 20, 30)), min_size=16, max_size=16))
    return pools, lambda first, second: 10 if first == second else apart[
        2 * min(first, second) + max(first, second) // 2
    ]


@given(small_machines(), st.integers(1, 6), st.booleans())
def test_the_whole_rule_against_every_way_to_give_ranks_to_nodes(
    machine: tuple[list[Pool], Callable[[int, int], int]], ranks: int, spread: bool
) -> None:
    pools, distance = machine
    sizes = [len(pool.cores) for pool in pools]
    assume(ranks <= sum(sizes))
    smallest = brute_force_smallest(sizes, ranks)
    eligible = [size >= smallest for size in sizes]
    ways = [
        counts
        for counts in itertools.product(range(ranks + 1), repeat=len(pools))
        if sum(counts) == ranks
        and all(count <= size for count, size in zip(counts, sizes))
        # A node stays unused only where it must.
        and (ranks < sum(eligible) or all(count > 0 for count, may in zip(counts, eligible) if may))
    ]
    split = split_cores(pools, ranks, distance, spread=spread)
    counter = collections.Counter(share[0].node for share in split.shares)
    ours = tuple(counter[pool.node] for pool in pools)
    if ranks < sum(eligible):
        assert rule(pools, ours, distance, spread) == min(rule(pools, counts, distance, spread) for counts in ways)
    else:
        # All nodes are used; what is left to choose is how many ranks each has.
        least = min(map(len, split.shares))
        good = [counts for counts in ways if smallest_share(pools, counts) >= least]
        best = min(rule(pools, counts, distance, spread)[:3] for counts in good)
        assert rule(pools, ours, distance, spread)[:3] == best
    nodes = [share[0].node for share in split.shares]
    assert nodes == sorted(nodes)


@given(topologies(), st.integers(1, 6))
def test_a_split_deals_each_core_of_a_used_node_once(topology: Topology, ranks: int) -> None:
    pools = usable_pools(topology, unusable_cpus(topology, PlacementRequest(), {}), rule_for("x86_64"))
    assume(ranks <= sum(len(pool.cores) for pool in pools))
    split = split_cores(pools, ranks, topology.distance)
    idle = {core for cores in split.idle for core in cores}
    dealt = [core for share in split.shares for core in share]
    assert len(set(dealt)) == len(dealt)
    assert not idle & set(dealt)
    for pool in pools:
        assert len(set(pool.cores) & (set(dealt) | idle)) in (0, len(pool.cores))
    best = brute_force_smallest([len(pool.cores) for pool in pools], ranks)
    assert min(map(len, split.shares)) >= best - any("l3" in pool.levels for pool in pools)


def test_close_takes_near_nodes_and_spread_takes_packages() -> None:
    far = [[10, 30, 30, 12], [30, 10, 12, 30], [30, 12, 10, 30], [12, 30, 30, 10]]
    topology = with_distances(synthetic("package:4 numa:1 core:2 pu:1"), far)
    used = make_plan(topology, PlacementRequest(tensor_parallel_size=2))
    assert [rank.nodes for rank in used.ranks] == [(0,), (3,)]
    two_packages = with_distances(
        synthetic("package:2 numa:2 core:2 pu:1"),
        [[10, 11, 20, 20], [11, 10, 20, 20], [20, 20, 10, 11], [20, 20, 11, 10]],
    )
    close = make_plan(two_packages, PlacementRequest(tensor_parallel_size=2, span="node"))
    assert [rank.nodes for rank in close.ranks] == [(0,), (1,)]
    spread = make_plan(two_packages, PlacementRequest(tensor_parallel_size=2, distribute="spread", span="node"))
    assert [rank.nodes for rank in spread.ranks] == [(0,), (2,)]


FAR_NEIGHBOURS = [[10, 30, 30, 12], [30, 10, 12, 30], [30, 12, 10, 30], [12, 30, 30, 10]]


@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 30),
)
def test_another_rank_never_enlarges_the_smallest_whatever_the_caches(
    nodes: int, sizes: list[int], repeat: int, ranks: int
) -> None:
    pools = [pool_of(sizes * repeat, node=node) for node in range(nodes)]
    assume(ranks < nodes * repeat * sum(sizes))
    smallest = [
        min(map(len, split_cores(pools, count, lambda _first, _second: 20).shares)) for count in (ranks, ranks + 1)
    ]
    assert smallest[0] >= smallest[1]


@pytest.mark.parametrize(("l3s", "cores", "ranks"), [(8, 5, 40), (2, 5, 7)])
def test_symmetric_nodes_get_even_shares(l3s: int, cores: int, ranks: int) -> None:
    nodes = 3 if ranks == 40 else 2
    counts = [len(cpus) for cpus in threads(plan_for(f"numa:{nodes} l3:{l3s} core:{cores} pu:1", ranks, reserve=0))]
    assert (min(counts), max(counts)) == (2, 4)


def test_the_ranks_of_a_tensor_group_are_neighbours() -> None:
    topology = with_distances(synthetic("package:4 numa:1 core:4 pu:1"), FAR_NEIGHBOURS)
    by_shape = {
        (2, 1, 2): [0, 3, 1, 2],
        (2, 2, 1): [0, 3, 1, 2],
        (4, 1, 1): [0, 1, 2, 3],
        (1, 2, 2): [0, 3, 1, 2],
        (1, 1, 4): [0, 1, 2, 3],
        (2, 1, 4): [0, 0, 1, 1, 2, 2, 3, 3],
        (4, 1, 2): [0, 0, 3, 3, 1, 1, 2, 2],
    }
    for (tensor, pipeline, data), expected in by_shape.items():
        request = PlacementRequest(
            tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, data_parallel_size=data
        )
        assert [rank.nodes[0] for rank in make_plan(topology, request).ranks] == expected


@given(st.permutations(range(6)), st.integers(1, 6))
def test_near_groups_name_each_node_once(nodes: list[int], size: int) -> None:
    order = near_order(nodes, [1] * 6, size, lambda first, second: abs(first - second))
    assert sorted(order) == list(range(6))
    even = near_order(nodes, [1] * 6, size, lambda _first, _second: 20)
    assert [nodes[place] for place in even] == list(range(6))


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), min_size=1, max_size=6, unique_by=lambda pair: pair[0]),
    st.integers(1, 5),
    st.lists(st.integers(11, 14), min_size=441, max_size=441),
)
def test_each_node_of_a_group_is_the_nearest_to_those_before(
    drawn: list[tuple[int, int]], group: int, apart: list[int]
) -> None:
    nodes, counts = map(list, zip(*drawn))

    def distance(first: int, second: int) -> int:
        return apart[21 * min(first, second) + max(first, second)]

    left, members, placed, expected = list(range(len(nodes))), list[int](), 0, list[int]()
    while left:
        chosen = min(left, key=lambda place: (sum(distance(nodes[one], nodes[place]) for one in members), nodes[place]))
        left.remove(chosen)
        expected.append(chosen)
        placed += counts[chosen]
        begins = placed // group > (placed - counts[chosen]) // group
        members = ([] if begins else members) + ([chosen] if placed % group else [])
    assert near_order(nodes, counts, group, distance) == expected


def test_many_nodes_are_chosen_without_trying_every_set() -> None:
    plan = plan_for("numa:64 core:1 pu:1", 32)
    assert [rank.nodes for rank in plan.ranks] == [(node,) for node in range(32)]


def line_of_nodes(nodes: int, package: int) -> Topology:
    """Return a machine with nodes of one core in a row, the same number in each package."""
    topology = synthetic(f"package:{nodes // package} numa:{package} core:1 pu:1")
    return with_distances(topology, [[10 + abs(one - two) for two in range(nodes)] for one in range(nodes)])


@pytest.mark.parametrize("nodes", [8, 24])
def test_close_nodes_are_neighbours_and_spread_ones_are_in_all_packages(nodes: int) -> None:
    topology = line_of_nodes(nodes, 4)
    half = PlacementRequest(tensor_parallel_size=nodes // 2, span="node")
    close = make_plan(topology, half)
    assert sorted(rank.nodes[0] for rank in close.ranks) == list(range(nodes // 2))
    spread = make_plan(topology, half._replace(distribute="spread"))
    assert {rank.nodes[0] // 4 for rank in spread.ranks} == set(range(nodes // 4))


def test_nodes_that_are_chosen_step_by_step_are_near_those_with_more_cores() -> None:
    # Of 24 nodes in a row the last one has two cores; eleven more are wanted.
    topology = line_of_nodes(24, 4)
    extra = topology.cpus[-1]._replace(id=24, physical_core=24)
    nodes = (*topology.nodes[:-1], topology.nodes[-1]._replace(cpus=(23, 24)))
    plan = make_plan(
        topology._replace(cpus=(*topology.cpus, extra), nodes=nodes),
        PlacementRequest(data_parallel_size=12, span="node"),
    )
    assert [rank.nodes[0] for rank in plan.ranks] == list(range(12, 24))


def test_spread_nodes_that_are_equally_far_are_in_different_packages() -> None:
    plan = plan_for("package:2 numa:2 core:2 pu:1", 2, distribute="spread", span="node")
    assert [rank.nodes for rank in plan.ranks] == [(0,), (2,)]


def test_nodes_bound_ranks_on_s390x_if_there_are_several() -> None:
    two = plan_for("numa:2 core:4 pu:1", 3, "s390x", span="node")
    assert [rank.nodes for rank in two.ranks] == [(0,), (0,), (1,)]
    assert "no-numa-information" not in codes(two)


def test_many_ranks_and_nodes_are_planned_in_no_time() -> None:
    assert len(plan_for("numa:1024 pu:8", 512).ranks) == 512
    assert len(plan_for("pu:8192", 8192).ranks) == 8192
    assert len(plan_for("numa:2 core:8192 pu:1", 4096).ranks) == 4096
    assert len(plan_for("numa:2 l3:512 core:10 pu:1", 3000).ranks) == 3000


def test_a_node_stays_unused_if_that_makes_the_smallest_rank_larger() -> None:
    topology = synthetic("numa:2 core:8 pu:1")
    narrow = topology._replace(cpus=tuple(cpu._replace(allowed=cpu.id < 10) for cpu in topology.cpus))
    plan = make_plan(narrow, PlacementRequest(tensor_parallel_size=2, reserve=0))
    assert threads(plan) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert reasons(plan) == {"not-allowed": (10, 11, 12, 13, 14, 15), "unused-node": (8, 9)}


def test_idle_cores_are_left_out_as_remainder() -> None:
    plan = plan_for("package:1 l3:2 core:8 pu:1", 3, reserve=0)
    assert threads(plan) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11, 12, 13)]
    assert reasons(plan) == {"remainder": (14, 15)}
    assert "--reserve" in plan.left_out[0].detail


def test_a_machine_without_numa_information_is_shared_out_whole() -> None:
    plan = make_plan(
        without_nodes(synthetic("package:2 core:3 pu:1")), PlacementRequest(tensor_parallel_size=4, reserve=0)
    )
    assert sorted(map(len, threads(plan))) == [1, 1, 2, 2]
    assert plan.left_out == ()


def test_packages_books_and_drawers_are_preferred_cut_lines() -> None:
    one_node = synthetic("package:4 core:3 pu:1", "s390x")
    book = tuple(cpu._replace(book=cpu.package // 2, drawer=0) for cpu in one_node.cpus)
    plan = make_plan(one_node._replace(cpus=book), PlacementRequest(tensor_parallel_size=3, reserve=0))
    assert [len(cpus) for cpus in threads(plan)] == [4, 4, 4]
    plan = make_plan(one_node._replace(cpus=book), PlacementRequest(tensor_parallel_size=5, reserve=0))
    assert sorted(map(len, threads(plan))) == [2, 2, 2, 3, 3]
    books = [{cpu // 6 for cpu in cpus} for cpus in threads(plan)]
    assert [len(touched) for touched in books] == [1] * 5


def test_a_rank_spans_its_package_or_the_machine() -> None:
    assert [rank.nodes for rank in plan_for("package:2 numa:2 core:4 pu:1", 2, span="package").ranks] == [
        (0, 1),
        (2, 3),
    ]
    assert [rank.nodes for rank in plan_for("package:2 numa:2 core:4 pu:1", 1, span="package").ranks] == [(0, 1)]
    whole = plan_for("package:2 numa:2 core:4 pu:1", 1, span="machine", reserve=0)
    assert (whole.ranks[0].nodes, whole.ranks[0].memory_policy) == ((0, 1, 2, 3), "interleave")
    assert threads(whole) == [tuple(range(16))]
    thirds = plan_for("package:2 numa:2 core:4 pu:1", 3, span="machine", reserve=0)
    assert sorted(map(len, threads(thirds))) == [5, 5, 6]
    unused = plan_for("package:2 numa:2 core:4 pu:1", 1, span="package")
    assert reasons(unused)["unused-node"] == tuple(range(8, 16))
    assert "2 of 4 NUMA nodes are not used" in " ".join(message.message for message in unused.messages)


def test_a_span_joins_near_nodes() -> None:
    topology = with_distances(synthetic("package:4 numa:1 core:4 pu:1"), FAR_NEIGHBOURS)
    plan = make_plan(topology, PlacementRequest(tensor_parallel_size=2, span="machine", reserve=0))
    assert [rank.nodes for rank in plan.ranks] == [(0, 3), (1, 2)]


def test_as_many_ranks_as_nodes_do_not_straddle_them_whatever_the_span() -> None:
    for ranks in (4, 5, 8):
        spanned = plan_for("package:2 numa:2 core:4 pu:1", ranks, span="machine")
        assert spanned.ranks == plan_for("package:2 numa:2 core:4 pu:1", ranks).ranks
