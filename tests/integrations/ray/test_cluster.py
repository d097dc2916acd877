from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.devices.model import GPUHome
from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.integrations.ray.cluster import ClusterNode, ClusterPlan, make_cluster_plan
from ompaffinity.integrations.ray.document import cluster_document
from ompaffinity.integrations.ray.rooms import ranks_by_room
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement.plan import make_plan, usable_room
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from ompaffinity.topology.source import load_topology
from tests.strategies import topologies

SMALL = "numa:1 core:4 pu:1"
LARGE = "package:2 numa:1 core:8 pu:2"


def node(name: str, synthetic: str, slots: float = 64, host: str = "", **fields: Any) -> ClusterNode:
    topology = load_topology(synthetic=synthetic, architecture="x86_64")
    return ClusterNode(f"{name}-id", name, topology, slots, host or name, **fields)


def counts(plan: ClusterPlan) -> dict[str, int]:
    """Return how many ranks each node has."""
    ids = [rank.node_id for rank in plan.ranks]
    return {node_id: ids.count(node_id) for node_id in dict.fromkeys(ids)}


def test_the_smallest_rank_is_as_large_as_can_be() -> None:
    plan = make_cluster_plan([node("small", SMALL), node("large", LARGE)], PlacementRequest(data_parallel_size=5))
    assert counts(plan) == {"small-id": 1, "large-id": 4}
    assert [rank.rank for rank in plan.ranks] == [0, 1, 2, 3, 4]
    assert [rank.placement.rank for rank in plan.ranks] == [0, 1, 2, 3, 4]
    assert [rank.placement.local_rank for rank in plan.ranks] == [0, 0, 1, 2, 3]
    assert [rank.placement.local_world_size for rank in plan.ranks] == [1, 4, 4, 4, 4]


def test_a_machine_has_the_plan_that_it_would_have_alone() -> None:
    request = PlacementRequest(tensor_parallel_size=2, data_parallel_size=2)
    plan = make_cluster_plan([node("a", LARGE), node("b", LARGE)], request)
    alone = make_plan(load_topology(synthetic=LARGE, architecture="x86_64"), PlacementRequest(tensor_parallel_size=2))
    for first, host in zip((0, 2), plan.hosts):
        numbered = tuple(rank._replace(rank=first + rank.rank) for rank in alone.ranks)
        assert host.plan == alone._replace(ranks=numbered)


def with_gpus(name: str, *homes: int | None, gpus: float | None = None) -> ClusterNode:
    devices = tuple((f"0000:{at:02x}:00.0", GPUHome(() if h is None else (h,))) for at, h in enumerate(homes))
    return node(name, LARGE, gpu_slots=len(homes) if gpus is None else gpus, gpus=devices)


def test_gpu_ranks_go_where_the_gpus_are() -> None:
    nodes = [with_gpus("a", 0, 0, 1, 1), node("b", LARGE), with_gpus("c", 1, 0)]
    plan = make_cluster_plan(nodes, PlacementRequest(tensor_parallel_size=2, data_parallel_size=3, numa_bind=True))
    assert counts(plan) == {"a-id": 4, "c-id": 2}
    assert [rank.placement.gpu for rank in plan.ranks] == [0, 1, 2, 3, 0, 1]
    assert [rank.placement.nodes for rank in plan.ranks] == [(0,), (0,), (1,), (1,), (1,), (0,)]
    assert "gpu-by-scheduler" in [message.code for message in plan.messages]
    # What goes with each GPU of a node is known, also of those that no rank of this plan may get.
    few = make_cluster_plan(nodes[:1], PlacementRequest(tensor_parallel_size=2, numa_bind=True))
    assert [*few.hosts[0].by_gpu] == [f"0000:{at:02x}:00.0" for at in range(4)]
    parts = [set(placement.affinity) for placement in few.hosts[0].by_gpu.values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 32
    assert [rank.placement.local_world_size for rank in few.ranks] == [2, 2]


def test_gpus_that_the_scheduler_counts_and_no_process_sees() -> None:
    plan = make_cluster_plan([with_gpus("a", 0, gpus=2)], PlacementRequest(tensor_parallel_size=2, numa_bind=True))
    assert [rank.placement.bound for rank in plan.ranks] == [True, False]
    assert "device-node-unknown" in [message.code for message in plan.all_messages]


def test_gpu_ranks_of_one_machine_go_to_the_nodes_that_count_its_gpus() -> None:
    whole = with_gpus("a", 0, 0, 1, 1)
    nodes = [whole._replace(node_id=name, host="one", gpu_slots=gpus) for name, gpus in (("a", 1.5), ("b", 3.0))]
    plan = make_cluster_plan(nodes, PlacementRequest(tensor_parallel_size=4, numa_bind=True))
    assert counts(plan) == {"a": 1, "b": 3}


def test_more_gpu_ranks_than_gpus() -> None:
    request = PlacementRequest(tensor_parallel_size=3, numa_bind=True)
    with pytest.raises(PlacementError, match="3 GPU ranks were requested, but the cluster has 2 GPUs"):
        make_cluster_plan([with_gpus("a", 0, 1), node("b", LARGE)], request)
    with pytest.raises(PlacementError, match="0 GPUs"):
        make_cluster_plan([node("b", LARGE)], request)


@pytest.mark.parametrize(
    "by_hand", [{"numa_bind_nodes": (0,)}, {"numa_bind_cpus": ((0,),)}, {"gpus": (0,), "numa_bind": True}]
)
def test_gpus_by_hand_are_for_one_machine(by_hand: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="is for one machine"):
        make_cluster_plan([with_gpus("a", 0)], PlacementRequest(**by_hand))


def test_tensor_parallel_groups_stay_on_one_machine() -> None:
    request = PlacementRequest(tensor_parallel_size=4, data_parallel_size=4)
    plan = make_cluster_plan([node("small", SMALL), node("large", LARGE)], request)
    assert counts(plan) == {"small-id": 4, "large-id": 12}
    assert "groups-span-nodes" not in [message.code for message in plan.messages]


def test_reports_a_group_that_spans_machines() -> None:
    request = PlacementRequest(tensor_parallel_size=6)
    plan = make_cluster_plan([node("a", SMALL), node("b", SMALL)], request)
    assert counts(plan) == {"a-id": 3, "b-id": 3}
    assert "groups-span-nodes" in [message.code for message in plan.messages]


def test_nodes_on_one_machine_are_planned_as_one() -> None:
    nodes = [node("a", SMALL, 4, host="same"), node("b", SMALL, 4, host="same")]
    plan = make_cluster_plan(nodes, PlacementRequest(data_parallel_size=4))
    assert counts(plan) == {"a-id": 2, "b-id": 2}
    held = [cpu for rank in plan.ranks for cpu in (*rank.placement.cpus, *rank.placement.helper_cpus)]
    assert len(held) == len(set(held))
    assert [message.code for message in plan.messages] == ["nodes-share-machine"]
    assert [rank.placement.local_rank for rank in plan.ranks] == [0, 1, 2, 3]


def test_helper_cpus_count_for_the_ranks_of_a_cluster() -> None:
    request = PlacementRequest(data_parallel_size=2)
    plan = make_cluster_plan([node("a", "core:2 pu:1")], request)
    assert [rank.placement.affinity for rank in plan.ranks] == [(0,), (1,)]
    plan = make_cluster_plan([node("a", "core:2 pu:1")], request._replace(helper_cpus="node"))
    assert [rank.placement.affinity for rank in plan.ranks] == [(0, 1)] * 2


def test_a_node_for_no_work_gets_none() -> None:
    plan = make_cluster_plan([node("head", LARGE, 0), node("a", SMALL)], PlacementRequest(data_parallel_size=2))
    assert counts(plan) == {"a-id": 2}
    with pytest.raises(PlacementError, match="no node of the cluster may run anything"):
        make_cluster_plan([node("head", LARGE, 0)], PlacementRequest())


def test_slots_are_those_of_the_cpus_and_all_ranks_fit() -> None:
    plan = make_cluster_plan([node("a", SMALL, 4)], PlacementRequest(data_parallel_size=2))
    assert [rank.slots for rank in plan.ranks] == [2, 2]
    plan = make_cluster_plan([node("a", SMALL, 2)], PlacementRequest(data_parallel_size=3))
    assert [rank.slots for rank in plan.ranks] == [0.6666, 0.6666, 0.6666]
    plan = make_cluster_plan([node("a", SMALL, 64)], PlacementRequest(data_parallel_size=2))
    assert [rank.slots for rank in plan.ranks] == [2, 2]


def test_each_machine_gets_the_variables_of_its_own_runtime() -> None:
    nodes = [node("a", SMALL, runtime="gomp"), node("b", SMALL, runtime="iomp", granularity="team")]
    plan = make_cluster_plan(nodes, PlacementRequest(data_parallel_size=2))
    assert [host.plan.runtime for host in plan.hosts] == ["gomp", "iomp"]
    assert [host.plan.granularity for host in plan.hosts] == ["thread", "team"]
    plan = make_cluster_plan(nodes, PlacementRequest(data_parallel_size=2, runtime="omp", granularity="thread"))
    assert {(host.plan.runtime, host.plan.granularity) for host in plan.hosts} == {("omp", "thread")}


def test_reports_uneven_machines() -> None:
    plan = make_cluster_plan([node("small", SMALL), node("large", LARGE)], PlacementRequest(data_parallel_size=4))
    assert counts(plan) == {"small-id": 1, "large-id": 3}
    assert [message.code for message in plan.messages] == ["uneven-ranks"]
    plan = make_cluster_plan([node("a", SMALL), node("b", SMALL)], PlacementRequest(data_parallel_size=2))
    assert plan.messages == ()


def test_what_is_for_one_machine_is_refused() -> None:
    with pytest.raises(RequestError, match="--bind with lists is for one machine"):
        make_cluster_plan([node("a", SMALL)], PlacementRequest(bind=((0,),)))
    with pytest.raises(RequestError, match="--avoid is for one machine"):
        make_cluster_plan([node("a", SMALL)], PlacementRequest(avoid=(HeldCPUs("x", (0,)),)))


def test_more_ranks_than_cpus_are_refused_unless_they_may_share() -> None:
    nodes = [node("a", SMALL), node("b", SMALL)]
    with pytest.raises(PlacementError, match="9 ranks were requested, but the nodes have 8 usable CPUs in all"):
        make_cluster_plan(nodes, PlacementRequest(data_parallel_size=9))
    plan = make_cluster_plan(nodes, PlacementRequest(data_parallel_size=9, oversubscribe=True))
    assert sum(counts(plan).values()) == 9


def test_ranks_share_cores_before_they_are_refused() -> None:
    plan = make_cluster_plan([node("a", "numa:1 core:2 pu:2")], PlacementRequest(data_parallel_size=3, reserve=0))
    assert len(plan.ranks) == 3


def test_unbound_ranks_are_dealt_out_all_the_same() -> None:
    plan = make_cluster_plan([node("a", SMALL), node("b", SMALL)], PlacementRequest(data_parallel_size=4, bind="none"))
    assert counts(plan) == {"a-id": 2, "b-id": 2}
    assert not any(rank.placement.bound for rank in plan.ranks)


def test_a_quota_counts_as_so_many_cores() -> None:
    machine = load_topology(synthetic=LARGE, architecture="x86_64")
    assert usable_room(machine, PlacementRequest()) == (16, 32)
    limited = machine._replace(limits=machine.limits._replace(cpu_quota=2.5))
    assert usable_room(limited, PlacementRequest()) == (2, 32)


def test_the_document_holds_every_rank_with_its_environment_and_every_machine() -> None:
    plan = make_cluster_plan([node("a", SMALL), node("b", SMALL)], PlacementRequest(data_parallel_size=2))
    document = cluster_document(plan)
    assert document["schema"] == "ompaffinity.cluster/1"
    assert [(rank["rank"], rank["local_rank"], rank["node"]) for rank in document["ranks"]] == [
        (0, 0, "a"),
        (1, 0, "b"),
    ]
    assert all(rank["environment"]["OMP_NUM_THREADS"] == str(len(rank["cpus"])) for rank in document["ranks"])
    assert [machine["plan"] for machine in document["machines"]] == [plan_document(host.plan) for host in plan.hosts]
    assert [rank["rank"] for rank in cluster_document(plan, 1)["ranks"]] == [1]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 12),
    st.booleans(),
)
def test_every_rank_has_a_machine_with_room(
    drawn: list[tuple[int, int]], group: int, groups: int, oversubscribe: bool
) -> None:
    rooms = [(cores, cores * threads) for cores, threads in drawn]
    ranks = group * groups
    cpus = sum(room[1] for room in rooms)
    if ranks > cpus and not (oversubscribe and cpus):
        with pytest.raises(PlacementError):
            ranks_by_room(rooms, ranks, group, oversubscribe=oversubscribe)
        return
    dealt, whole = ranks_by_room(rooms, ranks, group, oversubscribe=oversubscribe)
    assert sum(dealt) == ranks
    assert not whole or all(count % group == 0 for count in dealt)
    assert all(count == 0 for count, room in zip(dealt, rooms) if not room[1])
    if ranks <= cpus:
        assert all(count <= room[1] for count, room in zip(dealt, rooms))
    if group == 1 and ranks <= sum(room[0] for room in rooms):
        # No other division gives the smallest rank more: one rank less anywhere would not beat it elsewhere.
        least = min(room[0] / count for count, room in zip(dealt, rooms) if count)
        assert all(room[0] / (count + 1) <= least for count, room in zip(dealt, rooms))


@given(st.lists(topologies(), min_size=1, max_size=3), st.integers(1, 6))
def test_no_cpu_is_given_twice_on_any_machine(machines: list[Any], ranks: int) -> None:
    nodes = [ClusterNode(str(at), str(at), machine, 8, str(at)) for at, machine in enumerate(machines)]
    try:
        plan = make_cluster_plan(nodes, PlacementRequest(data_parallel_size=ranks))
    except PlacementError:
        return
    assert [rank.rank for rank in plan.ranks] == list(range(ranks))
    for host in plan.hosts:
        held = [cpu for rank in host.plan.ranks for cpu in (*rank.cpus, *rank.helper_cpus)]
        assert len(held) == len(set(held))
        assert set(held) <= set(host.nodes[0].topology.allowed_cpus)
    for _, group in enumerate(plan.hosts):
        slots = [rank.slots for rank in plan.ranks if rank.node_id == group.nodes[0].node_id]
        assert sum(slots) <= 8
        assert min(slots) > 0
