"""GPU ranks: each next to its GPU, with cores that no other rank has."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.devices.model import GPUHome
from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement.check_gpu import NUMABindConfig
from ompaffinity.placement.document import parse_placement, placement_document
from ompaffinity.placement.environment import requested
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from ompaffinity.topology.model import UNKNOWN, Limits, Topology
from tests.placement.machines import codes, machine_of, reasons, synthetic, with_distances, without_nodes
from tests.strategies import topologies

TWO = "package:2 numa:1 core:8 pu:2"
FOUR = "package:2 numa:2 core:8 pu:2"


def homes(*nodes: Any) -> tuple[GPUHome, ...]:
    return tuple(GPUHome(() if node is None else (node,) if isinstance(node, int) else node) for node in nodes)


def plan_of(topology: Topology, *nodes: Any, **request: Any) -> Plan:
    """Plan a rank for each of these GPUs."""
    request.setdefault("tensor_parallel_size", len(nodes))
    return make_plan(topology, PlacementRequest(numa_bind=True, gpu_homes=homes(*nodes), **request))


def owned(plan: Plan) -> list[set[int]]:
    return [{*rank.cpus, *rank.helper_cpus} for rank in plan.ranks]


@st.composite
def gpu_requests(draw: st.DrawFn, topology: Topology, *, share: bool | None = None) -> PlacementRequest:
    ranks = draw(st.integers(1, 6))
    allowed = st.lists(st.sampled_from(topology.allowed_cpus), min_size=1, unique=True).map(tuple)
    nodes = [node.id for node in topology.nodes if node.cpus]
    known = st.lists(st.sampled_from(nodes), max_size=2, unique=True).map(tuple) if nodes else st.just(())
    together = draw(st.booleans()) if share is None else share
    return PlacementRequest(
        tensor_parallel_size=ranks,
        numa_bind=True,
        gpus=tuple(draw(st.permutations(range(ranks)))) if draw(st.booleans()) else None,
        gpu_homes=tuple(GPUHome(draw(known)) for _ in range(ranks)),
        span=draw(st.sampled_from(("node", "package", "machine"))),
        share=together,
        reserve_per_rank=None if together else draw(st.sampled_from((None, 0, 1, 3))),
        core_type=draw(st.sampled_from(("auto", "performance", "all"))),
        cpus=draw(st.one_of(st.none(), st.none(), allowed)),
    )


@given(topologies(), st.data())
def test_each_rank_is_next_to_its_gpu_or_unbound(topology: Topology, data: st.DataObject) -> None:
    request = data.draw(gpu_requests(topology))
    plan = make_plan(topology, request)
    for rank, gpu in zip(plan.ranks, request.gpu_of_rank, strict=True):
        assert rank.gpu == gpu
        home = (request.gpu_homes or ())[gpu]
        here = {topology.cpu(cpu).numa_node for cpu in rank.affinity}
        assert set(rank.affinity) <= set(topology.allowed_cpus)
        assert {*rank.cpus, *rank.helper_cpus} <= set(rank.affinity)
        assert rank.bound == bool(rank.cpus)
        if rank.bound and len([node for node in topology.nodes if node.cpus]) > 1:
            assert here & set(home.nodes)
            assert request.span != "node" or here <= set(home.nodes)
        if not home.nodes and len([node for node in topology.nodes if node.cpus]) > 1:
            assert not rank.bound
    unbound = [rank for rank in plan.ranks if not rank.bound]
    reported = {"device-node-unknown", "outside-binding", "device-cpus-unusable"} & set(warnings(plan))
    assert bool(unbound) == bool(reported)
    for rank in unbound:
        (about,) = {
            m.message for m in plan.messages if f"GPU {rank.gpu}," in m.message or f"GPU {rank.gpu}:" in m.message
        }
        assert "stays unbound" in about


def warnings(plan: Plan) -> list[str]:
    return [message.code for message in plan.messages if message.level == "warning"]


@given(topologies(), st.data())
def test_cores_are_shared_with_a_message_only(topology: Topology, data: st.DataObject) -> None:
    request = data.draw(gpu_requests(topology, share=False))
    plan = make_plan(topology, request)
    if "ranks-share-cores" in codes(plan):
        # It is so: there is a node with fewer cores than ranks.
        allowed = [topology.cpu(cpu) for cpu in request.cpus or topology.allowed_cpus]
        allowed = [cpu for cpu in allowed if request.cpus or not cpu.isolated]
        cores = {(cpu.physical_core if cpu.physical_core != UNKNOWN else -2 - cpu.id, cpu.numa_node) for cpu in allowed}
        assert min(collections.Counter(node for _, node in cores).values()) < len(plan.ranks)
        return
    owners = collections.defaultdict(set)
    for rank in plan.ranks:
        for cpu in rank.affinity:
            info = topology.cpu(cpu)
            owners[info.physical_core, info.numa_node, cpu if info.physical_core == UNKNOWN else -1].add(rank.rank)
    assert all(len(ranks) == 1 for ranks in owners.values())


@given(topologies(), st.data())
def test_every_cpu_is_accounted_for(topology: Topology, data: st.DataObject) -> None:
    request = data.draw(gpu_requests(topology))
    plan = make_plan(topology, request)
    seen = collections.Counter(cpu for owns in owned(plan) for cpu in owns)
    left = collections.Counter(cpu for group in plan.left_out for cpu in group.cpus)
    assert set(seen) | set(left) == {cpu.id for cpu in topology.cpus}
    assert not set(seen) & set(left)
    assert set(left.values()) <= {1}
    if not request.share and "ranks-share-cores" not in codes(plan):
        assert set(seen.values()) <= {1}
    assert make_plan(topology, request) == plan


def test_gpus_of_a_node_share_its_cores_evenly() -> None:
    plan = plan_of(synthetic(TWO, architecture="x86_64"), 0, 0, 1, 1)
    assert [rank.gpu for rank in plan.ranks] == [0, 1, 2, 3]
    assert [rank.nodes for rank in plan.ranks] == [(0,), (0,), (1,), (1,)]
    assert [len(rank.affinity) for rank in plan.ranks] == [8] * 4
    # A core of each is for its helper threads and data loaders.
    assert [len(rank.helper_cpus) for rank in plan.ranks] == [2] * 4
    assert plan.granularity == "team"
    assert all(place == rank.affinity for rank in plan.ranks for place in rank.places)
    assert plan.reserved == tuple(sorted(cpu for rank in plan.ranks for cpu in rank.helper_cpus))
    assert warnings(plan) == []


def test_uneven_gpus_each_get_what_is_next_to_them() -> None:
    plan = plan_of(synthetic(TWO, architecture="x86_64"), 0, 0, 0, 1)
    assert [len(rank.affinity) for rank in plan.ranks] == [6, 6, 4, 16]


def test_the_l3_is_the_first_line_to_cut_along() -> None:
    topology = synthetic("package:1 numa:1 l3:2 core:4 pu:1", architecture="x86_64")
    plan = plan_of(topology, 0, 0)
    assert [{topology.cpu(cpu).l3 for cpu in rank.affinity} for rank in plan.ranks] == [{0}, {1}]


def test_what_is_unknown_stays_unbound_and_the_rest_does_not() -> None:
    plan = plan_of(synthetic(TWO), 0, None, 1)
    assert [rank.bound for rank in plan.ranks] == [True, False, True]
    assert plan.ranks[1].gpu == 1
    assert warnings(plan) == ["device-node-unknown"]
    (message,) = [message for message in plan.messages if message.level == "warning"]
    assert "GPU 1" in message.message
    assert "--numa-bind-nodes" in message.message


def test_no_rank_can_be_bound() -> None:
    plan = plan_of(synthetic(TWO), None, None)
    assert [rank.bound for rank in plan.ranks] == [False, False]
    assert reasons(plan).keys() == {"unbound"}


def test_without_numa_information_every_cpu_is_as_near() -> None:
    for topology in (synthetic("package:1 core:8 pu:1"), without_nodes(synthetic("package:1 core:8 pu:1"))):
        plan = plan_of(topology, None, None)
        assert [len(rank.affinity) for rank in plan.ranks] == [4, 4]
        assert warnings(plan) == []


def test_a_gpu_that_two_nodes_are_as_near_to() -> None:
    plan = plan_of(synthetic(FOUR, architecture="x86_64"), (0, 1), 0, reserve=0)
    assert [rank.nodes for rank in plan.ranks] == [(0, 1), (0,)]
    assert [len(rank.affinity) for rank in plan.ranks] == [8 + 16, 8]


def bound_to(topology: Topology, allowed: set[int]) -> Topology:
    """Return the machine as a process sees it that was bound from outside."""
    cpus = tuple(cpu._replace(allowed=cpu.id in allowed) for cpu in topology.cpus)
    return topology._replace(cpus=cpus, limits=Limits(affinity=tuple(sorted(allowed))))


def test_an_outside_mask_is_never_widened() -> None:
    topology = bound_to(synthetic(TWO), {0, 1, 2, 3, 16, 17})
    plan = plan_of(topology, 0, 1)
    assert plan.ranks[0].affinity == (0, 1, 2, 3)
    assert plan.ranks[1].affinity == (16, 17)
    outside = plan_of(bound_to(topology, {0, 1}), 0, 1)
    assert [rank.affinity for rank in outside.ranks] == [(0, 1), ()]
    assert warnings(outside) == ["outside-binding"]
    # Nodes and CPUs that are named are cut as well.
    by_hand = PlacementRequest(tensor_parallel_size=2, numa_bind_nodes=(0, 1))
    assert [rank.affinity for rank in make_plan(bound_to(topology, {0, 1}), by_hand).ranks] == [(0, 1), ()]
    listed = PlacementRequest(tensor_parallel_size=2, numa_bind_cpus=((0, 1, 4), (16, 17)))
    cut = make_plan(bound_to(topology, {0, 1}), listed)
    assert [rank.affinity for rank in cut.ranks] == [(0, 1), ()]
    assert warnings(cut) == ["outside-binding"] * 2


def test_more_gpus_than_cores_share_with_a_message() -> None:
    topology = bound_to(synthetic(TWO), {0, 1, 2})
    plan = plan_of(topology, 0, 0, 0)
    assert [rank.affinity for rank in plan.ranks] == [(0,), (1,), (2,)]
    assert warnings(plan) == ["ranks-share-cores"]
    crowded = plan_of(bound_to(topology, {0}), 0, 0)
    assert [rank.affinity for rank in crowded.ranks] == [(0,), (0,)]
    assert warnings(crowded) == ["ranks-share-cores"]


def test_reports_what_is_not_available_with_its_cause() -> None:
    topology = synthetic(TWO)
    isolated = topology._replace(cpus=tuple(cpu._replace(isolated=cpu.numa_node == 1) for cpu in topology.cpus))
    plan = plan_of(isolated, 0, 1)
    (message,) = [message for message in plan.messages if message.level == "warning"]
    assert message.code == "device-cpus-unusable"
    assert "isolcpus; --cpus LIST uses those" in message.message
    named = plan_of(topology, 0, 1, nodes=(0,))
    assert [rank.bound for rank in named.ranks] == [True, False]
    assert "outside what --cpus, --nodes" in next(m.message for m in named.messages if m.level == "warning")
    held = HeldCPUs("first.json", tuple(range(16, 32)))
    avoiding = plan_of(topology, 0, 1, avoid=(held,))
    assert "--avoid" in next(m.message for m in avoiding.messages if m.level == "warning")
    # One that is another worker's has no message.
    quiet = (GPUHome((0,)), GPUHome((1,), quiet=True))
    request = PlacementRequest(tensor_parallel_size=2, numa_bind=True, gpu_homes=quiet)
    assert warnings(make_plan(isolated, request)) == []


def test_cpus_and_nodes_that_are_not_there_are_refused() -> None:
    for wrong in ({"cpus": (999,)}, {"nodes": (7,)}):
        with pytest.raises(PlacementError, match=r"999|node 7"):
            plan_of(synthetic(TWO), 0, 1, **wrong)


def test_slow_cores_are_better_than_half_a_fast_one() -> None:
    topology = synthetic("package:1 numa:2 core:8 pu:1")
    kinds = {cpu.id: "performance" if cpu.id in (0, 1, 8, 9, 10, 11) else "efficiency" for cpu in topology.cpus}
    hybrid = topology._replace(cpus=tuple(cpu._replace(kind=kinds[cpu.id]) for cpu in topology.cpus))
    plan = plan_of(hybrid, 0, 0, 0, 1, reserve=0, core_type="performance")
    assert [len(rank.affinity) for rank in plan.ranks] == [3, 3, 2, 4]
    assert warnings(plan) == ["slower-cores-used"]
    assert set(plan.ranks[3].cpus) == {8, 9, 10, 11}


def with_kinds(topology: Topology, fast: set[int]) -> Topology:
    kinds = {cpu.id: "performance" if cpu.id in fast else "efficiency" for cpu in topology.cpus}
    return topology._replace(cpus=tuple(cpu._replace(kind=kinds[cpu.id]) for cpu in topology.cpus))


@pytest.mark.parametrize(
    ("fast", "gpus", "uses_slow"), [({0, 1}, 2, False), ({0, 1}, 3, True), (set(), 1, True), ({0}, 1, False)]
)
def test_without_nodes_slow_cores_are_used_by_more_ranks_than_fast_cores(
    fast: set[int], gpus: int, uses_slow: bool
) -> None:
    topology = without_nodes(with_kinds(synthetic("core:6 pu:1", "x86_64"), fast))
    plan = plan_of(topology, *[None] * gpus, reserve=0, core_type="performance")
    used = {cpu for rank in plan.ranks for cpu in rank.affinity}
    assert bool(used - fast) is uses_slow
    assert ("slower-cores-used" in codes(plan)) is uses_slow


@pytest.mark.parametrize(
    ("fast", "gpus", "sizes"), [({0, 1, 4}, (0, 0), [1, 1]), ({0, 1}, (0, 1), [2, 4]), ({4, 5}, (0, 1), [4, 2])]
)
def test_slow_cores_are_used_on_nodes_with_fewer_fast_cores_than_ranks(
    fast: set[int], gpus: tuple[int, ...], sizes: list[int]
) -> None:
    topology = with_kinds(synthetic("package:1 numa:2 core:4 pu:1", "x86_64"), fast)
    plan = plan_of(topology, *gpus, reserve=0, core_type="performance")
    assert [len(rank.affinity) for rank in plan.ranks] == sizes


def test_a_cpu_on_no_node_does_not_make_ranks_use_slow_cores() -> None:
    topology = with_kinds(synthetic("package:1 numa:2 core:8 pu:1", "x86_64"), {*range(4), 8, 15})
    cpus = tuple(cpu._replace(numa_node=UNKNOWN) if cpu.id == 15 else cpu for cpu in topology.cpus)
    plan = plan_of(topology._replace(cpus=cpus), 0, 0, reserve=0, core_type="performance")
    assert [rank.affinity for rank in plan.ranks] == [(0, 1), (2, 3)]


def test_ranks_share_no_core_to_stay_on_a_node() -> None:
    topology = bound_to(synthetic("package:1 numa:2 core:8 pu:1"), {*range(9)})
    plan = plan_of(topology, 0, 0, 0, 0, span="machine", reserve=0)
    assert [rank.affinity for rank in plan.ranks] == [(0, 1, 8), (2, 3), (4, 5), (6, 7)]
    assert warnings(plan) == []
    both = plan_of(bound_to(topology, {0, 1, 8}), (0, 1), (0, 1), reserve=0)
    assert [rank.affinity for rank in both.ranks] == [(0, 8), (1,)]
    one_each = plan_of(bound_to(topology, {0, 8}), (0, 1), (0, 1), reserve=0)
    assert [rank.affinity for rank in one_each.ranks] == [(0,), (8,)]
    # Who has nothing else comes first.
    needy = plan_of(bound_to(topology, {0, 1, 8}), (0, 1), 1, reserve=0)
    assert [rank.affinity for rank in needy.ranks] == [(0, 1), (8,)]


def test_a_quota_takes_threads_from_lists_with_a_note() -> None:
    topology = synthetic(TWO)._replace(limits=Limits(cpu_quota=2.0))
    plan = make_plan(topology, PlacementRequest(tensor_parallel_size=2, numa_bind_cpus=("0-3", "8-11")))  # type: ignore[arg-type]
    assert [rank.cpus for rank in plan.ranks] == [(0,), (8,)]
    assert reasons(plan)["quota"] == (1, 2, 3, 9, 10, 11)
    lists = make_plan(topology, PlacementRequest(tensor_parallel_size=2, bind=((0, 1, 2), (8, 9))))
    assert reasons(lists)["quota"] == (1, 2, 9)
    # Those that are not bound take no part of it.
    some = make_plan(topology, PlacementRequest(tensor_parallel_size=2, numa_bind=True, gpu_homes=homes(0, None)))
    assert len(some.ranks[0].cpus) == 2


def test_memory_by_hand_is_no_lack_of_memory() -> None:
    request = PlacementRequest(numa_bind_cpus=((0, 1),), numa_bind_nodes=(1,))
    assert "memoryless-node" not in codes(make_plan(synthetic(TWO), request))


def test_ranks_that_share_all() -> None:
    plan = plan_of(synthetic(TWO), 0, 0, 1, share=True)
    assert plan.ranks[0].affinity == plan.ranks[1].affinity == tuple(range(16))
    assert plan.ranks[2].affinity == tuple(range(16, 32))
    assert plan.reserved == ()


def test_nodes_without_gpus_are_lent_to_the_nearest() -> None:
    topology = synthetic(FOUR, architecture="x86_64")
    plan = plan_of(topology, 0, 0, 2, reserve=0)
    assert codes(plan) == {"nodes-unused": "note"}
    assert reasons(plan)["unused-node"] == (*range(16, 32), *range(48, 64))
    package = plan_of(topology, 0, 0, 2, span="package", reserve=0)
    assert [rank.nodes for rank in package.ranks] == [(0, 1), (0, 1), (2, 3)]
    # Each has a part of its GPU's own node.
    assert [len(set(rank.affinity) & set(range(16))) for rank in package.ranks[:2]] == [8, 8]
    one = plan_of(topology, 0, span="package", reserve=0)
    assert one.ranks[0].nodes == (0, 1)
    machine = plan_of(topology, 0, span="machine", reserve=0)
    assert machine.ranks[0].nodes == (0, 1, 2, 3)


def test_a_node_is_lent_to_the_nearest_node_with_gpus() -> None:
    far = [[10, 30, 20, 15], [30, 10, 15, 30], [20, 15, 10, 30], [15, 30, 30, 10]]
    plan = plan_of(with_distances(synthetic(FOUR), far), 0, 2, span="machine", reserve=0)
    assert [rank.nodes for rank in plan.ranks] == [(0, 3), (1, 2)]


@pytest.mark.parametrize(
    ("gpus", "nodes"),
    [((0, 1, 1), [(0, 3), (1, 2), (1, 2)]), ((0, 0, 1), [(0, 2, 3), (0, 2, 3), (1,)])],
)
def test_of_nodes_as_near_the_one_whose_ranks_have_the_fewest_cores_is_lent_another(
    gpus: tuple[int, ...], nodes: list[tuple[int, ...]]
) -> None:
    plan = plan_of(synthetic("package:4 numa:1 core:8 pu:1"), *gpus, span="machine", reserve=0)
    assert [rank.nodes for rank in plan.ranks] == nodes


def test_idle_cores_that_are_reserved_are_on_the_node_of_the_gpu() -> None:
    plan = plan_of(synthetic("package:1 numa:2 l3:3 core:3 pu:1"), 0, 0, span="package")
    assert [rank.helper_cpus for rank in plan.ranks] == [(7,), (8,)]
    assert reasons(plan)["remainder"] == (6, 15, 16, 17)


@pytest.mark.parametrize(
    ("sizes", "gpus", "taken"),
    [
        # One rank on 8 cores, two on 8: the two get the third node.
        ([8, 8, 4], [0, 1, 1], {1: {2}}),
        # Four ranks on 12 cores, two on 12: the first node stays the poorer one with a lent node.
        ([12, 12, 4, 4], [0, 0, 0, 0, 1, 1], {0: {2, 3}}),
        # Equal ones: the lowest node.
        ([8, 8, 4], [0, 1], {0: {2}}),
    ],
)
def test_a_lent_node_goes_to_the_ranks_with_the_fewest_cores(
    sizes: list[int], gpus: list[int], taken: dict[int, set[int]]
) -> None:
    machine = machine_of([sizes])
    plan = plan_of(machine, *gpus, span="package", reserve=0)
    lent: dict[int, set[int]] = {}
    for rank, node in zip(plan.ranks, gpus):
        others = {machine.cpu(cpu).numa_node for cpu in rank.affinity} - {node}
        if others:
            lent.setdefault(node, set()).update(others)
    assert lent == taken


def test_nodes_of_unknown_packages_are_not_lent_within_one() -> None:
    machine = machine_of([[4, 4]])
    unknown = machine._replace(cpus=tuple(cpu._replace(package=UNKNOWN) for cpu in machine.cpus))
    assert [rank.nodes for rank in plan_of(unknown, 0, span="package").ranks] == [(0,)]
    assert [rank.nodes for rank in plan_of(unknown, 0, span="machine").ranks] == [(0, 1)]


def test_idle_cores_of_the_first_node_of_a_rank_are_reserved_first() -> None:
    # The L3s leave 14 and 15 of the first node idle.
    topology = synthetic("package:1 numa:2 l3:2 core:8 pu:1", "x86_64")
    plan = plan_of(topology, 0, 0, 0)
    assert sorted(cpu for rank in plan.ranks for cpu in rank.helper_cpus) == [13, 14, 15]
    lent = plan_of(topology, 0, 0, 0, span="machine", reserve_per_rank=1)
    assert sum(len(rank.helper_cpus) for rank in lent.ranks) == 3
    assert {14, 15} <= {cpu for rank in lent.ranks for cpu in rank.helper_cpus}


def test_as_many_ranks_as_cores_share_none() -> None:
    plan = plan_of(bound_to(synthetic(TWO), {0, 1, 2, 3}), 0, 0, reserve=0)
    assert [rank.affinity for rank in plan.ranks] == [(0, 1), (2, 3)]
    assert warnings(plan) == []


def test_more_ranks_than_cpus_share_each_cpu_with_a_neighbour() -> None:
    plan = plan_of(bound_to(synthetic(TWO), {0, 1, 2}), 0, 0, 0, 0, 0)
    assert [rank.affinity for rank in plan.ranks] == [(0,), (0,), (1,), (1,), (2,)]
    (message,) = [message.message for message in plan.messages if message.level == "warning"]
    assert message.startswith("ranks 0-4 are next to node 0, where CPU 0-2 may be used: fewer cores than ranks")
    assert "ranks share CPUs" in message
    siblings = plan_of(bound_to(synthetic(TWO), {0, 1}), 0, 0)
    assert any("SMT siblings of one core go to different ranks" in message.message for message in siblings.messages)
    anywhere = plan_of(without_nodes(synthetic("core:1 pu:1")), None, None)
    assert any("next to one node, where CPU 0" in message.message for message in anywhere.messages)


def test_names_what_a_listed_rank_or_a_gpu_lacks() -> None:
    topology = bound_to(synthetic(TWO), {0, 1})
    listed = make_plan(topology, PlacementRequest(numa_bind_cpus=((0, 1, 4),)))
    (message,) = [message.message for message in listed.messages if message.level == "warning"]
    assert message.startswith("rank 0 has GPU 0, next to CPU 0-1,4; this process may use only some of the CPUs there")
    assert message.endswith("so it gets CPU 0-1 only")
    near = plan_of(topology, 1)
    (message,) = [message.message for message in near.messages if message.level == "warning"]
    assert message.startswith("rank 0 has GPU 0, next to node 1; this process may use no CPU there (not-allowed: ")
    assert message.endswith("so it stays unbound")
    avoided = plan_of(topology, 1, avoid=(HeldCPUs("x", (0,)),))
    assert "other plans hold them (--avoid)" in next(m.message for m in avoided.messages if m.level == "warning")


def test_a_gpu_without_a_home_in_the_list_is_no_error_beside_listed_cpus() -> None:
    request = PlacementRequest(tensor_parallel_size=2, numa_bind_cpus=((0,), (1,)), gpu_homes=homes(0))
    plan = make_plan(bound_to(synthetic(TWO), {0}), request)
    assert warnings(plan) == ["outside-binding"]


def test_gpus_by_number() -> None:
    plan = make_plan(
        synthetic(TWO),
        PlacementRequest(tensor_parallel_size=2, gpus=(3, 0), gpu_homes=homes(0, 0, 1, 1)),
    )
    assert [(rank.gpu, rank.nodes) for rank in plan.ranks] == [(3, (1,)), (0, (0,))]


def test_nodes_by_hand_need_no_gpu() -> None:
    plan = make_plan(synthetic(TWO), PlacementRequest(tensor_parallel_size=2, numa_bind_nodes=[1, 0]))  # type: ignore[arg-type]
    assert [rank.nodes for rank in plan.ranks] == [(1,), (0,)]


def test_cpus_by_hand_in_the_order_written() -> None:
    request = PlacementRequest(
        tensor_parallel_size=2,
        numa_bind_nodes=(0, 1),
        numa_bind_cpus=("6,4,2", "16-18"),  # type: ignore[arg-type]
    )
    plan = make_plan(synthetic(TWO), request)
    assert [rank.cpus for rank in plan.ranks] == [(6, 4, 2), (16, 17, 18)]
    assert [rank.affinity for rank in plan.ranks] == [(2, 4, 6), (16, 17, 18)]
    assert [rank.nodes for rank in plan.ranks] == [(0,), (1,)]
    # The memory is that of the node which is named, wherever the CPUs are.
    crossed = make_plan(synthetic(TWO), request._replace(numa_bind_nodes=(1, 1)))
    assert [rank.nodes for rank in crossed.ranks] == [(1,), (1,)]
    assert reasons(plan).keys() == {"not-requested"}


def test_a_plan_is_read_back() -> None:
    plan = plan_of(synthetic(TWO), 0, 1)
    import json

    for rank in plan.ranks:
        assert parse_placement(json.dumps(placement_document(rank))) == rank
    assert [rank["device"] for rank in plan_document(plan)["ranks"]] == [0, 1]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"share": True}, "--share .* for GPU ranks"),
        ({"numa_bind": 1}, "--numa-bind .* True or False"),
        ({"numa_bind_nodes": ()}, "names no node"),
        ({"numa_bind_nodes": 0}, "must be a list of node numbers"),
        ({"numa_bind_nodes": (-1, 0)}, "-1"),
        ({"numa_bind_nodes": (0,)}, "names 1 GPU, but 2 ranks on GPU 0-1 were"),
        ({"numa_bind_cpus": ("0-3",)}, "names 1 GPU, but 2 ranks on GPU 0-1 were"),
        ({"numa_bind_cpus": ()}, "names no CPU"),
        ({"numa_bind_cpus": "0-3"}, "must be a list of CPU lists"),
        ({"numa_bind_cpus": ("0-3", "+0")}, r"GPU 1; write lists"),
        ({"numa_bind_cpus": ("0-3", "")}, "gives GPU 1 no CPU"),
        ({"numa_bind_cpus": ("0-3", (4, 4))}, "a CPU twice for GPU 1"),
        ({"numa_bind_cpus": ("0-3", "3-5")}, "gives CPU 3 to GPU 0 and to GPU 1"),
        ({"numa_bind_cpus": ("0-3", "4-5"), "reserve": 1}, "--reserve cannot be combined"),
        ({"numa_bind_cpus": ("0-3", "4-5"), "nodes": (0,)}, "--nodes cannot be combined"),
        ({"numa_bind_cpus": ("0-3", "4-5"), "numa_bind_nodes": (0, 0, 1)}, "names 3 GPUs and .* 2"),
        ({"numa_bind": True, "share": True, "reserve": 1}, "--reserve cannot be combined"),
        ({"numa_bind": True, "bind": "none"}, "--bind is for CPU ranks"),
        ({"numa_bind": True, "distribute": "spread"}, "--distribute is for CPU ranks"),
        ({"numa_bind": True, "oversubscribe": True}, "--oversubscribe is for CPU ranks"),
        ({"gpus": (0, 0)}, "names a GPU twice"),
        ({"gpus": (0,)}, "names 1 GPU for 2 ranks"),
        ({"gpus": "01"}, "must be a list of GPU numbers"),
        ({"gpus": (0, 5)}, "2 ranks on GPU 0,5 were requested, but 2 GPUs are seen"),
        (
            {"numa_bind": True, "gpu_homes": (), "tensor_parallel_size": 1},
            "1 rank on GPU 0 was requested, but no GPUs are seen",
        ),
        ({"numa_bind": True, "gpu_homes": homes(0)}, "2 ranks on GPU 0-1 were requested, but 1 GPU is seen"),
        ({"gpus": (0, "1")}, "must be a list of GPU numbers"),
        ({"gpus": {0, 1}}, "must be a list of GPU numbers"),
        ({"gpus": (0, 65536)}, "must be a list of GPU numbers"),
        ({"numa_bind_nodes": ("x", -1)}, "has 'x' in it; it must be node numbers from 0 to 65535"),
        ({"numa_bind_cpus": ({0}, "1")}, r"has \{0\} for GPU 0; it must be CPU numbers"),
        ({"numa_bind_cpus": ((0, True), "1")}, r"has \(0, True\) for GPU 0; it must be CPU numbers"),
        (
            {"numa_bind_cpus": ("0", "1", "0-1"), "tensor_parallel_size": 3},
            "gives CPU 0-1 to GPU 0 and to GPU 2",
        ),
        ({"numa_bind": True, "helper_cpus": "node"}, "--helper-cpus is for CPU ranks"),
    ],
)
def test_what_makes_no_sense_is_refused_each_in_its_own_words(request_: dict[str, Any], words: str) -> None:
    request = PlacementRequest(**{"tensor_parallel_size": 2, "gpu_homes": homes(0, 1), **request_})
    with pytest.raises(RequestError, match=words):
        make_plan(synthetic(TWO), request)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"numa_bind": True}, "the NUMA nodes of this machine's GPUs are unknown"),
        ({"numa_bind_nodes": (0, 7)}, "node 7 for GPU 1, which does not exist here; the nodes with CPUs are 0-1"),
        ({"numa_bind_cpus": ("0-3", "99")}, "CPU 99, which this machine does not have"),
    ],
)
def test_what_this_machine_does_not_have(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(PlacementError, match=words):
        make_plan(synthetic(TWO), PlacementRequest(tensor_parallel_size=2, **request_))


def test_a_node_that_is_a_gpus_memory_is_no_place_for_threads() -> None:
    topology = synthetic(TWO)
    memory = topology.nodes[0]._replace(id=9, cpus=(), device_memory=True)
    topology = topology._replace(nodes=(*topology.nodes, memory))
    with pytest.raises(PlacementError, match="node 9 for GPU 0, which has no online CPU"):
        make_plan(topology, PlacementRequest(numa_bind_nodes=(9,)))


def test_what_the_environment_holds_for_cpu_ranks_is_not_for_these() -> None:
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "0-3", "OMPAFFINITY_RESERVED_CPUS": "2"}
    assert requested({"numa_bind": True}, environ) == PlacementRequest(numa_bind=True, reserve=2)
    assert requested({"numa_bind": True, "share": True}, environ).reserve is None
    assert requested({"numa_bind_cpus": ((0,),)}, environ).reserve is None
    with pytest.raises(RequestError):
        make_plan(synthetic(TWO), requested({"numa_bind": True, "bind": "none"}, environ))


def test_the_configuration() -> None:
    config = NUMABindConfig(True, [0, 1], ["0-3", (4, 5)])
    assert config.numa_bind_nodes == (0, 1)
    assert config.numa_bind_cpus == ((0, 1, 2, 3), (4, 5))
    assert NUMABindConfig() == (False, None, None)
    assert config._replace(numa_bind_cpus=None) == NUMABindConfig(True, (0, 1))
    for wrong, words in (
        ({"numa_bind": "yes"}, "True or False"),
        ({"numa_bind_nodes": [0]}, "numa_bind is False"),
        ({"numa_bind_cpus": ["0"]}, "numa_bind is False"),
        ({"numa_bind": True, "numa_bind_nodes": []}, "names no node"),
        ({"numa_bind": True, "numa_bind_nodes": [0, True]}, "True"),
        ({"numa_bind": True, "numa_bind_nodes": [0], "numa_bind_cpus": ["0", "1"]}, "names 1 GPU and"),
    ):
        with pytest.raises(ValueError, match=words):
            NUMABindConfig(**wrong)
