from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ompaffinity.errors import PlacementError, RequestError, TopologyError
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan, usable_room
from ompaffinity.placement.request import SIZES, HeldCPUs, PlacementRequest
from ompaffinity.topology.model import UNKNOWN, Limits, LogicalCPUInfo, MemoryNodeInfo, Topology
from ompaffinity.topology.snapshot import parse_capture
from ompaffinity.topology.source import load_topology
from tests.conftest import recorded_names
from tests.placement.machines import codes, plan_for, reasons, synthetic, threads, with_distances
from tests.strategies import requests, topologies


def try_plan(topology: Topology, request: PlacementRequest) -> Plan:
    try:
        return make_plan(topology, request)
    except PlacementError:
        usable = len([cpu for cpu in topology.cpus if cpu.allowed and not cpu.isolated])
        assert request.ranks > usable
        assume(False)
        raise


@given(topologies(), requests())
def test_every_cpu_is_accounted_for_once(topology: Topology, request: PlacementRequest) -> None:
    plan = try_plan(topology, request)
    seen = collections.Counter(cpu for rank in plan.ranks for cpu in (*rank.cpus, *rank.helper_cpus))
    seen.update(cpu for group in plan.left_out for cpu in group.cpus)
    assert seen == collections.Counter(cpu.id for cpu in topology.cpus)
    assert len({group.reason for group in plan.left_out}) == len(plan.left_out)


@given(topologies(), requests())
def test_ranks_get_allowed_cpus_and_no_rank_is_empty(topology: Topology, request: PlacementRequest) -> None:
    plan = try_plan(topology, request)
    assert len(plan.ranks) == request.ranks
    for rank in plan.ranks:
        assert rank.cpus
        assert set(rank.affinity) <= set(topology.allowed_cpus)
        assert {*rank.cpus, *rank.helper_cpus} <= set(rank.affinity)
        assert len(rank.places) == len(rank.cpus)
        assert all(cpu in place and set(place) <= set(rank.affinity) for cpu, place in zip(rank.cpus, rank.places))
        assert all(topology.node(node).allowed and topology.node(node).has_memory is not False for node in rank.nodes)


@given(topologies(), requests())
def test_a_core_is_shared_with_a_message_only(topology: Topology, request: PlacementRequest) -> None:
    plan = try_plan(topology, request)
    owners = collections.defaultdict(set)
    for rank in plan.ranks:
        for cpu in (*rank.cpus, *rank.helper_cpus):
            info = topology.cpu(cpu)
            owners[info.physical_core, info.numa_node].add(rank.rank)
    assert ("ranks-share-cores" in codes(plan)) == any(len(ranks) > 1 for ranks in owners.values())


@given(topologies(numa=True), requests())
def test_no_rank_straddles_a_node(topology: Topology, request: PlacementRequest) -> None:
    plan = try_plan(topology, request._replace(span="node"))
    assume(not (topology.architecture == "s390x" and len(topology.nodes) <= 1))
    for rank in plan.ranks:
        assert len({topology.cpu(cpu).numa_node for cpu in (*rank.cpus, *rank.helper_cpus)}) == 1


@given(topologies(), requests())
def test_the_same_input_gives_the_same_bytes(topology: Topology, request: PlacementRequest) -> None:
    plan = try_plan(topology, request)
    again = make_plan(topology, request)
    assert json.dumps(plan_document(plan)) == json.dumps(plan_document(again))


@given(topologies(), st.integers(1, 5), st.sampled_from(("close", "spread")))
def test_another_rank_never_enlarges_the_smallest(topology: Topology, ranks: int, distribute: str) -> None:
    sizes = []
    for count in (ranks, ranks + 1):
        plan = try_plan(topology, PlacementRequest(tensor_parallel_size=count, distribute=distribute, reserve=0))
        sizes.append(min(len(rank.cpus) for rank in plan.ranks))
    assert sizes[0] >= sizes[1]


@given(topologies(), requests(), st.integers(1, 50))
def test_a_growing_renumbering_of_cpus_renumbers_the_plan(
    topology: Topology, request: PlacementRequest, step: int
) -> None:
    plan = try_plan(topology, request)
    new = {cpu.id: 7 + cpu.id * step for cpu in topology.cpus}
    moved = topology._replace(
        cpus=tuple(cpu._replace(id=new[cpu.id]) for cpu in topology.cpus),
        nodes=tuple(node._replace(cpus=tuple(new[cpu] for cpu in node.cpus)) for node in topology.nodes),
    )
    other = make_plan(moved, request)
    assert [tuple(new[cpu] for cpu in cpus) for cpus in threads(plan)] == threads(other)
    assert [tuple(new[cpu] for cpu in rank.helper_cpus) for rank in plan.ranks] == [
        rank.helper_cpus for rank in other.ranks
    ]
    assert [rank.nodes for rank in plan.ranks] == [rank.nodes for rank in other.ranks]
    assert codes(plan) == codes(other)


def test_one_thread_per_core_the_last_sibling_and_a_reserved_core() -> None:
    plan = plan_for("package:1 numa:1 core:4 pu:2")
    (rank,) = plan.ranks
    assert rank.cpus == (1, 3, 5)
    assert rank.helper_cpus == (6, 7)
    assert rank.places == ((1, 6, 7), (3,), (5,))
    assert rank.affinity == (1, 3, 5, 6, 7)
    assert plan.reserved == (6, 7)
    assert [(group.cpus, group.reason) for group in plan.left_out] == [((0, 2, 4), "smt-sibling")]


def test_siblings_are_chosen_among_the_allowed_ones() -> None:
    topology = synthetic("core:4 pu:2")
    first_only = topology._replace(cpus=tuple(cpu._replace(allowed=cpu.id % 2 == 0) for cpu in topology.cpus))
    assert threads(make_plan(first_only, PlacementRequest(reserve=0))) == [(0, 2, 4, 6)]


@pytest.mark.parametrize(
    ("architecture", "siblings", "cpus", "helpers"),
    [
        ("ppc64le", 8, tuple(range(4)), tuple(range(8, 16))),
        ("ppc64le", 2, (0, 1), (2, 3)),
        ("s390x", 2, (1,), (2, 3)),
        ("aarch64", 1, (0,), (1,)),
        ("aarch64", 2, (1,), (2, 3)),
        ("i686", 2, (1,), (2, 3)),
        ("riscv64", 2, (1,), (2, 3)),
        ("loongarch64", 2, (1,), (2, 3)),
        ("sparc64", 2, (1,), (2, 3)),
    ],
)
def test_threads_and_reserve_by_architecture(
    architecture: str, siblings: int, cpus: tuple[int, ...], helpers: tuple[int, ...]
) -> None:
    (rank,) = plan_for(f"core:2 pu:{siblings}", architecture=architecture).ranks
    assert (rank.cpus, rank.helper_cpus) == (cpus, helpers)


@pytest.mark.parametrize(
    ("architecture", "reserved"),
    [
        *(("x86_64", 4), ("aarch64", 4), ("riscv64", 4), ("loongarch64", 4)),
        *(("ppc64le", 1), ("s390x", 1), ("sparc64", 1)),
    ],
)
def test_one_core_per_rank_or_one_in_all(architecture: str, reserved: int) -> None:
    assert len(plan_for("core:16 pu:1", 4, architecture).reserved) == reserved
    assert len(plan_for("core:16 pu:1", 4, architecture, kv_transfer=True).reserved) == reserved + 4
    assert len(plan_for("core:16 pu:1", 4, architecture, reserve=3).reserved) == 3
    assert len(plan_for("core:16 pu:1", 4, architecture, reserve_per_rank=2).reserved) == 8
    assert plan_for("core:16 pu:1", 4, architecture, reserve=0).reserved == ()


def test_threads_per_core_as_asked() -> None:
    assert threads(plan_for("core:2 pu:4", threads_per_core=2, reserve=0)) == [(2, 3, 6, 7)]
    assert threads(plan_for("core:2 pu:4", threads_per_core=99, reserve=0)) == [tuple(range(8))]


def test_two_cpus_and_two_ranks_leave_nothing_to_reserve() -> None:
    plan = plan_for("core:2 pu:1", 2)
    assert threads(plan) == [(0,), (1,)]
    assert codes(plan)["reserve-impossible"] == "note"
    assert "helper-cpus-shared" in codes(plan)
    assert [rank.affinity for rank in plan.ranks] == [(0,), (1,)]
    assert codes(plan_for("core:2 pu:1", 2, reserve=1))["reserve-impossible"] == "warning"


@pytest.mark.parametrize("size", SIZES)
def test_a_rank_without_helper_cpus_runs_on_its_own_cpus(size: str) -> None:
    sizes: Any = {size: 2}
    request = PlacementRequest(**sizes)
    plan = make_plan(synthetic("core:2 pu:1"), request)
    assert [(rank.cpus, rank.affinity, rank.places) for rank in plan.ranks] == [
        ((0,), (0,), ((0,),)),
        ((1,), (1,), ((1,),)),
    ]
    assert "helper-cpus-shared" in codes(plan)
    two = make_plan(synthetic("core:4 pu:1"), request._replace(reserve=0))
    assert [(rank.affinity, rank.places) for rank in two.ranks] == [
        ((0, 1), ((0, 1), (1,))),
        ((2, 3), ((2, 3), (3,))),
    ]
    many = plan_for("core:2 pu:1", 1, data_parallel_size=3, oversubscribe=True)
    assert [rank.affinity for rank in many.ranks] == [(0,), (0,), (1,)]


def test_helper_cpus_of_the_node_are_those_of_all_its_ranks() -> None:
    plan = plan_for("numa:2 core:4 pu:1", 4, reserve=0, helper_cpus="node")
    assert [(rank.cpus, rank.affinity) for rank in plan.ranks] == [
        ((0, 1), (0, 1, 2, 3)),
        ((2, 3), (0, 1, 2, 3)),
        ((4, 5), (4, 5, 6, 7)),
        ((6, 7), (4, 5, 6, 7)),
    ]
    assert [rank.places[0] for rank in plan.ranks] == [(0, 2, 3), (0, 1, 2), (4, 6, 7), (4, 5, 6)]
    with_helpers = plan_for("core:4 pu:1", 2, helper_cpus="node")
    assert [rank.affinity for rank in with_helpers.ranks] == [(0, 1), (2, 3)]
    with pytest.raises(RequestError, match="--helper-cpus"):
        plan_for("core:4 pu:1", 2, helper_cpus="all")
    with pytest.raises(RequestError, match="--helper-cpus is for CPU ranks"):
        plan_for("numa:2 core:4 pu:1", 2, numa_bind_nodes=(0, 1), helper_cpus="node")


@given(topologies(), requests())
def test_no_cpu_is_in_the_affinity_of_two_ranks(topology: Topology, request: PlacementRequest) -> None:
    plan = try_plan(topology, request)
    masks = [set(rank.affinity) for rank in plan.ranks]
    assert sum(map(len, masks)) == len(set().union(*masks))


def test_a_rank_without_helpers_lends_them_its_idle_siblings() -> None:
    plan = plan_for("core:2 pu:2", 2)
    assert [(rank.cpus, rank.affinity) for rank in plan.ranks] == [((1,), (0, 1)), ((3,), (2, 3))]
    assert "helper-cpus-shared" not in codes(plan)


def test_one_core_with_two_threads_is_shared_by_two_ranks() -> None:
    plan = plan_for("core:1 pu:2", 2, "unknown")
    assert threads(plan) == [(0,), (1,)]
    assert codes(plan)["ranks-share-cores"] == "warning"


def test_ranks_that_share_cores_keep_siblings_together() -> None:
    topology = load_topology(synthetic="core:6 pu:2", architecture="x86_64")
    last = dict(zip(range(12), [*range(0, 12, 2), *range(1, 12, 2)]))
    far_siblings = topology._replace(cpus=tuple(topology.cpus[last[cpu]]._replace(id=cpu) for cpu in range(12)))
    plan = make_plan(far_siblings, PlacementRequest(tensor_parallel_size=7))
    cores = [{far_siblings.cpu(cpu).physical_core for cpu in (*rank.cpus, *rank.helper_cpus)} for rank in plan.ranks]
    assert [len(core) for core in cores] == [1] * 7


def test_memory_within_the_nodes_that_were_asked_for() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    empty = topology._replace(nodes=(topology.nodes[0]._replace(total_memory=0, has_memory=False), topology.nodes[1]))
    plan = make_plan(empty, PlacementRequest(nodes=(0,)))
    assert (plan.ranks[0].nodes, codes(plan)["memoryless-node"]) == ((), "warning")


def test_gpu_memory_is_not_for_cpu_ranks() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    nodes = (topology.nodes[0]._replace(has_memory=False), topology.nodes[1]._replace(device_memory=True))
    plan = make_plan(topology._replace(nodes=nodes), PlacementRequest())
    assert plan.ranks[0].nodes == ()


def test_a_memory_policy_is_set_only_if_several_nodes_have_main_memory() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    first, second = topology.nodes
    assert make_plan(topology, PlacementRequest(nodes=(0,))).ranks[0].memory_policy == "bind"
    of_gpu = topology._replace(nodes=(first, second._replace(device_memory=True)))
    assert make_plan(of_gpu, PlacementRequest(nodes=(0,))).ranks[0].memory_policy == "none"


def test_more_ranks_than_cpus_are_refused_with_the_numbers() -> None:
    with pytest.raises(PlacementError, match="9 ranks were requested, but only 8 CPUs"):
        plan_for("core:4 pu:2", 9)


def test_memory_comes_from_the_nearest_node_that_has_it() -> None:
    topology = with_distances(synthetic("numa:3 core:2 pu:1"), [[10, 30, 20], [30, 10, 40], [20, 40, 10]])
    empty = topology._replace(
        nodes=(topology.nodes[0]._replace(total_memory=0, has_memory=False), *topology.nodes[1:]),
    )
    plan = make_plan(empty, PlacementRequest(tensor_parallel_size=3))
    assert [(rank.nodes, rank.memory_policy) for rank in plan.ranks] == [((2,), "bind"), ((1,), "bind"), ((2,), "bind")]
    assert codes(plan)["memoryless-node"] == "note"


def test_no_allowed_memory_at_all_is_a_warning() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    locked = topology._replace(nodes=tuple(node._replace(allowed=False) for node in topology.nodes))
    plan = make_plan(locked, PlacementRequest(tensor_parallel_size=2))
    assert [(rank.nodes, rank.memory_policy) for rank in plan.ranks] == [((), "none")] * 2
    assert codes(plan)["memoryless-node"] == "warning"


def test_memory_policies() -> None:
    assert plan_for("numa:1 core:2 pu:1").ranks[0].memory_policy == "none"
    assert plan_for("numa:2 core:2 pu:1").ranks[0].memory_policy == "bind"
    assert plan_for("numa:2 core:2 pu:1", memory_policy="preferred").ranks[0].memory_policy == "preferred"
    plan = plan_for("numa:2 core:2 pu:1", bind=((0, 2),))
    assert (plan.ranks[0].nodes, plan.ranks[0].memory_policy) == ((0, 1), "interleave")


def test_explicit_lists_keep_their_order() -> None:
    plan = plan_for("core:8 pu:1", 2, bind=((6, 4), (0, 1)))
    assert threads(plan) == [(6, 4), (0, 1)]
    assert [(group.cpus, group.reason) for group in plan.left_out] == [((2, 3, 5, 7), "not-requested")]
    with pytest.raises(PlacementError, match="--bind names CPU 9"):
        plan_for("core:8 pu:1", bind=((9,),))


def test_no_binding_binds_nothing_with_a_message() -> None:
    plan = plan_for("core:2 pu:1", 2, bind="none")
    assert [rank.bound for rank in plan.ranks] == [False, False]
    assert [(group.cpus, group.reason) for group in plan.left_out] == [((0, 1), "unbound")]
    assert plan_document(plan)["ranks"][0]["environment"] == {}
    assert plan.messages == ()


def test_cpus_and_nodes_that_were_asked_for() -> None:
    plan = plan_for("numa:2 core:4 pu:1", cpus=(5, 6), reserve=0)
    assert threads(plan) == [(5, 6)]
    assert [group.reason for group in plan.left_out] == ["not-requested"]
    assert threads(plan_for("numa:2 core:4 pu:1", nodes=(1,), reserve=0)) == [(4, 5, 6, 7)]
    with pytest.raises(PlacementError, match=r"names node 7, which this machine does not have; its nodes are 0-1"):
        plan_for("numa:2 core:4 pu:1", nodes=(7,))
    with pytest.raises(PlacementError, match="--cpus names CPU 8-9"):
        plan_for("numa:2 core:4 pu:1", cpus=(1, 8, 9))


def hybrid() -> Topology:
    topology = synthetic("core:4 pu:1")
    kinds = ("performance", "performance", "efficiency", "low-power")
    return topology._replace(cpus=tuple(cpu._replace(kind=kind) for cpu, kind in zip(topology.cpus, kinds)))


def test_performance_cores_only_unless_asked_or_needed() -> None:
    plan = make_plan(hybrid(), PlacementRequest(reserve=0))
    assert threads(plan) == [(0, 1)]
    assert [(group.cpus, group.reason) for group in plan.left_out] == [((2, 3), "efficiency-core")]
    assert threads(make_plan(hybrid(), PlacementRequest(reserve=0, core_type="all"))) == [(0, 1, 2, 3)]
    needed = make_plan(hybrid(), PlacementRequest(tensor_parallel_size=4))
    assert threads(needed) == [(0,), (1,), (2,), (3,)]
    assert codes(needed)["slower-cores-used"] == "warning"


def test_isolated_cpus_only_when_named_or_where_there_are_no_others() -> None:
    topology = synthetic("core:4 pu:1")
    isolated = topology._replace(cpus=tuple(cpu._replace(isolated=cpu.id > 1) for cpu in topology.cpus))
    assert threads(make_plan(isolated, PlacementRequest(reserve=0))) == [(0, 1)]
    assert threads(make_plan(isolated, PlacementRequest(reserve=0, cpus=(1, 2)))) == [(1, 2)]
    only = topology._replace(cpus=tuple(cpu._replace(isolated=True) for cpu in topology.cpus))
    plan = make_plan(only, PlacementRequest(reserve=0))
    assert threads(plan) == [(0, 1, 2, 3)]
    assert codes(plan)["isolated-cpus-used"] == "note"


def test_a_cpu_that_shares_its_core_with_an_isolated_one_is_reported() -> None:
    topology = synthetic("core:2 pu:2")
    cpus = tuple(cpu._replace(isolated=cpu.id == 1) for cpu in topology.cpus)
    plan = make_plan(topology._replace(cpus=cpus), PlacementRequest(reserve=0))
    (message,) = [message for message in plan.messages if message.code == "isolated-siblings"]
    assert message.message.startswith("CPU 0 of the plan")


def test_siblings_on_two_nodes_are_reported() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    cpus = tuple(cpu._replace(physical_core=cpu.id % 2) for cpu in topology.cpus)
    plan = make_plan(topology._replace(cpus=cpus), PlacementRequest(tensor_parallel_size=2, reserve=0))
    assert threads(plan) == [(0, 1), (2, 3)]
    assert codes(plan)["ranks-share-cores"] == "warning"


def test_reports_unknown_cores() -> None:
    topology = synthetic("core:4 pu:1")
    cpus = tuple(cpu._replace(physical_core=UNKNOWN) for cpu in topology.cpus)
    assert "unknown-cores" in codes(make_plan(topology._replace(cpus=cpus), PlacementRequest()))
    assert "unknown-cores" not in codes(make_plan(topology, PlacementRequest()))


@pytest.mark.parametrize(("quota", "ranks", "level"), [(1.5, 4, "warning"), (1.5, 1, "note"), (2.0, 2, "note")])
def test_more_ranks_than_the_quota_runs_are_a_warning(quota: float, ranks: int, level: str) -> None:
    topology = synthetic("core:8 pu:1")._replace(limits=Limits(cpu_quota=quota))
    assert codes(make_plan(topology, PlacementRequest(tensor_parallel_size=ranks)))["quota-below-cpus"] == level


def test_offline_and_forbidden_cpus_are_named_so() -> None:
    topology = synthetic("core:4 pu:1")
    cpus = (
        topology.cpus[0],
        topology.cpus[1],
        topology.cpus[2]._replace(allowed=False),
        LogicalCPUInfo(3, online=False, allowed=False),
    )
    plan = make_plan(topology._replace(cpus=cpus), PlacementRequest(reserve=0))
    assert [(group.cpus, group.reason) for group in plan.left_out] == [((3,), "offline"), ((2,), "not-allowed")]


def test_reports_an_inherited_mask() -> None:
    topology = synthetic("core:4 pu:1")
    bound = topology._replace(limits=Limits(affinity=(0, 1)))
    assert codes(make_plan(bound, PlacementRequest()))["outside-binding"] == "note"


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (4.9, [(0, 1), (4, 5)]),
        (0.5, [(0,), (4,)]),
        (8.0, [(0, 1, 2), (4, 5, 6)]),
        (100, [(0, 1, 2), (4, 5, 6)]),
    ],
)
def test_threads_stay_within_the_quota(quota: float, expected: list[tuple[int, ...]]) -> None:
    topology = synthetic("core:8 pu:1")._replace(limits=Limits(cpu_quota=quota))
    plan = make_plan(topology, PlacementRequest(tensor_parallel_size=2))
    assert threads(plan) == expected
    assert [rank.helper_cpus for rank in plan.ranks] == [(3,), (7,)]
    left_out = {cpu for group in plan.left_out if group.reason == "quota" for cpu in group.cpus}
    assert left_out == {0, 1, 2, 4, 5, 6} - {cpu for cpus in expected for cpu in cpus}
    assert ("quota-below-cpus" in codes(plan)) == (quota < 8)


def test_a_mask_has_no_core_whose_threads_exceed_the_quota() -> None:
    topology = synthetic("core:4 pu:2")._replace(limits=Limits(cpu_quota=2.0))
    (rank,) = make_plan(topology, PlacementRequest(reserve=0)).ranks
    assert (rank.cpus, rank.affinity) == ((1, 3), (0, 1, 2, 3))


def test_reports_uneven_ranks_and_unused_nodes() -> None:
    assert "uneven-ranks" in codes(plan_for("core:7 pu:1", 2, reserve=0))
    plan = plan_for("numa:4 core:2 pu:1", 3)
    assert [message.message for message in plan.messages if message.code == "nodes-unused"] == [
        "1 of 4 NUMA nodes are not used: each rank gets equally many whole nodes of one package, and a tensor-parallel"
        " group stays in one package at a small cost; 4 ranks (--tp, --pp, --dp) would use them all, or --span machine"
    ]
    plan = plan_for("numa:4 core:2 pu:1", 3, span="node")
    assert [message.message for message in plan.messages if message.code == "nodes-unused"] == [
        "1 of 4 NUMA nodes are not used: more nodes than ranks; 4 ranks (--tp, --pp, --dp) would use them all,"
        " or --span machine"
    ]
    small = plan_for("numa:2 core:8 pu:1", 2, cpus=tuple(range(9)))
    assert "1 of 2 NUMA nodes are not used: too few CPUs" in " ".join(message.message for message in small.messages)
    assert "ranks-exceed-nodes" in codes(plan_for("numa:2 core:4 pu:1", 3))


def test_the_bytes_of_a_recorded_plan(recorded_machines: Path) -> None:
    machine = str(recorded_machines / "sysfs" / "x86-epyc7451-2p8n48c96t.tar.gz")
    plan = make_plan(load_topology(machine=machine), PlacementRequest(tensor_parallel_size=2))
    assert threads(plan) == [tuple(range(48, 71)), tuple(range(72, 95))]
    assert plan.reserved == (23, 47, 71, 95)
    assert {group.reason: len(group.cpus) for group in plan.left_out} == {"smt-sibling": 46}
    assert [rank.nodes for rank in plan.ranks] == [(0, 1, 2, 3), (4, 5, 6, 7)]


@pytest.mark.parametrize("name", recorded_names("sysfs", ".tar.gz"))
def test_plans_for_recorded_machines(recorded_machines: Path, name: str) -> None:
    expected = json.loads((recorded_machines / "expected" / f"{name}.json").read_text())
    archive = str(recorded_machines / "sysfs" / f"{name}.tar.gz")
    if not expected["online"]:
        with pytest.raises(TopologyError):
            load_topology(machine=archive)
        return
    topology = load_topology(machine=archive)
    for ranks in (1, 2, 3, 4, 8):
        request = PlacementRequest(tensor_parallel_size=ranks)
        if ranks > len(topology.allowed_cpus):
            with pytest.raises(PlacementError):
                make_plan(topology, request)
            continue
        plan = make_plan(topology, request)
        seen = collections.Counter(cpu for rank in plan.ranks for cpu in (*rank.cpus, *rank.helper_cpus))
        seen.update(cpu for group in plan.left_out for cpu in group.cpus)
        assert seen == collections.Counter(cpu.id for cpu in topology.cpus)
        for rank in plan.ranks:
            assert rank.cpus
            assert set(rank.affinity) <= set(topology.allowed_cpus)
            nodes = {topology.home(cpu) for cpu in (*rank.cpus, *rank.helper_cpus)}
            if len(nodes) > 1:
                assert len({topology.cpu(cpu).package for cpu in rank.cpus}) == 1


def test_a_node_record_has_defaults_that_mean_unknown() -> None:
    node = MemoryNodeInfo()
    assert (node.total_memory, node.available_memory, node.has_memory, node.distances) == (UNKNOWN, UNKNOWN, None, None)


@pytest.mark.parametrize("bind", ["auto", "none"])
def test_a_plan_is_live_where_its_topology_is(bind: str) -> None:
    topology, request = synthetic("core:4 pu:1"), PlacementRequest(bind=bind)
    recorded = make_plan(topology, request)
    live = make_plan(topology._replace(live=True), request)
    assert (recorded.live, live.live) == (False, True)
    assert plan_document(recorded) == plan_document(live)


@given(topologies(), requests())
def test_the_json_of_a_topology_gives_the_same_plan(topology: Topology, request: PlacementRequest) -> None:
    plan = try_plan(topology, request)
    again = parse_capture(json.loads(json.dumps(topology.to_document())))
    assert plan_document(make_plan(again, request)) == plan_document(plan)


@st.composite
def permuted(draw: st.DrawFn) -> tuple[Topology, Topology]:
    """Draw a machine of equal cores, and the same one with other CPU numbers."""
    levels = [f"{level}:{draw(st.integers(1, 3))}" for level in ("package", "numa", "l3", "core", "pu")]
    topology = synthetic(" ".join(levels), draw(st.sampled_from(("x86_64", "ppc64le", "s390x"))))
    new = draw(st.permutations([cpu.id for cpu in topology.cpus]))
    cpus = [cpu._replace(id=new[cpu.id]) for cpu in topology.cpus]
    nodes = [node._replace(cpus=tuple(sorted(new[cpu] for cpu in node.cpus))) for node in topology.nodes]
    return topology, topology._replace(cpus=tuple(sorted(cpus)), nodes=tuple(nodes))


@given(permuted(), st.integers(1, 9))
def test_other_cpu_numbers_keep_the_core_counts(machines: tuple[Topology, Topology], ranks: int) -> None:
    counts = []
    for topology in machines:
        plan = try_plan(topology, PlacementRequest(tensor_parallel_size=ranks, reserve=0))
        counts.append(sorted(len({topology.cpu(cpu).physical_core for cpu in rank.cpus}) for rank in plan.ranks))
    assert counts[0] == counts[1]


def test_siblings_that_the_architecture_does_not_want_are_shared_out_last() -> None:
    plan = plan_for("core:4 pu:8", 5, "ppc64le")
    assert sorted(cpu for rank in plan.ranks for cpu in (*rank.cpus, *rank.helper_cpus)) == [
        core * 8 + thread for core in range(4) for thread in range(4)
    ]
    assert reasons(plan) == {"smt-sibling": tuple(core * 8 + thread for core in range(4) for thread in range(4, 8))}
    assert "4 threads per core on ppc64le" in plan.left_out[0].detail
    everything = plan_for("core:4 pu:8", 17, "ppc64le")
    assert sum(len(rank.cpus) + len(rank.helper_cpus) for rank in everything.ranks) == 32


@pytest.mark.parametrize("field", ["kv_transfer", "oversubscribe"])
def test_flags_are_true_or_false(field: str) -> None:
    with pytest.raises(RequestError, match="must be True or False"):
        plan_for("core:1 pu:1", **{field: "no"})  # type: ignore[arg-type]


@pytest.mark.parametrize("bind", [None, 5])
def test_a_binding_that_is_none_of_its_forms(bind: object) -> None:
    with pytest.raises(RequestError, match="must be auto, none, or one list"):
        plan_for("core:1 pu:1", bind=bind)


def test_cpus_on_no_node_are_not_on_a_node_that_was_asked_for() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    strayed = topology._replace(cpus=(topology.cpus[0]._replace(numa_node=UNKNOWN), *topology.cpus[1:]))
    assert threads(make_plan(strayed, PlacementRequest(nodes=(1,), reserve=0))) == [(2, 3)]
    plan = make_plan(strayed, PlacementRequest(bind=((0,),)))
    assert (plan.ranks[0].nodes, plan.ranks[0].memory_policy) == ((0, 1), "interleave")


def test_unknown_packages_are_not_one_package() -> None:
    topology = synthetic("numa:4 core:2 pu:1")
    unknown = topology._replace(cpus=tuple(cpu._replace(package=UNKNOWN) for cpu in topology.cpus))
    assert [rank.nodes for rank in make_plan(unknown, PlacementRequest(span="package")).ranks] == [(0,)]


@pytest.mark.parametrize(
    ("quota", "request_", "room"),
    [
        (None, {}, (4, 8)),
        (2.5, {}, (2, 8)),
        (0.5, {}, (1, 8)),
        (9.0, {}, (4, 8)),
        (1.0, {"cpus": (0, 1, 2)}, (1, 3)),
        (None, {"avoid": (HeldCPUs("x", (0,)),)}, (3, 6)),
    ],
)
def test_counts_the_cores_and_cpus_that_a_plan_may_use(
    quota: float | None, request_: dict[str, Any], room: tuple[int, int]
) -> None:
    topology = synthetic("core:4 pu:2")._replace(limits=Limits(cpu_quota=quota))
    assert usable_room(topology, PlacementRequest(**request_)) == room
    with pytest.raises(PlacementError):
        usable_room(topology, PlacementRequest(cpus=(99,)))
