from __future__ import annotations

from typing import Any

import pytest

from ompaffinity.errors import PlacementError
from ompaffinity.placement.cpu_ranks import assign_cpu_ranks
from ompaffinity.placement.model import Assignment
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from ompaffinity.topology.model import Limits
from tests.placement.machines import machine_of, synthetic


def assignment(text: str, **request: object) -> Assignment:
    return assign_cpu_ranks(synthetic(text), PlacementRequest(**request), {})  # type: ignore[arg-type]


def test_assigns_listed_cpus_in_the_order_written() -> None:
    found = assignment("core:4 pu:1", tensor_parallel_size=2, bind=((3, 1), (0,)))
    assert [share.cpus for share in found.shares if share] == [(3, 1), (0,)]
    assert (found.pools, found.unusable) == ((), {2: "not-requested"})


def test_assigns_nothing_without_binding() -> None:
    assert assignment("core:4 pu:1", tensor_parallel_size=2, bind="none").shares == (None, None)


def test_idle_cores_are_those_that_no_rank_of_their_pool_has() -> None:
    found = assignment("numa:1 l3:2 core:8 pu:1", tensor_parallel_size=3, reserve=0)
    used = {core for share in found.shares if share for core in share.cores}
    assert found.idle == {core for pool in found.pools for core in pool.cores} - used
    assert len(found.idle) == 2


def test_cores_of_unused_pools_are_not_idle() -> None:
    found = assignment("numa:3 core:4 pu:1", reserve=0)
    assert len(found.pools) == 3
    assert found.idle == frozenset()


def test_splits_siblings_only_with_more_ranks_than_cores() -> None:
    assert not assignment("core:2 pu:2", tensor_parallel_size=2).split_siblings
    found = assignment("core:2 pu:2", tensor_parallel_size=3)
    assert found.split_siblings
    assert [len(core.cpus) for pool in found.pools for core in pool.cores] == [1, 1, 1, 1]


def test_cpus_of_other_plans_are_not_assigned() -> None:
    topology = synthetic("core:3 pu:1")
    held = {0: "other.json", 1: "other.json"}
    found = assign_cpu_ranks(topology, PlacementRequest(reserve=0), held)
    assert [share.cpus for share in found.shares if share] == [(2,)]
    assert found.held == held
    with pytest.raises(PlacementError, match="2 ranks were requested"):
        assign_cpu_ranks(topology, PlacementRequest(tensor_parallel_size=2), held)


def test_slow_cores_are_used_by_more_ranks_than_fast_cores_only() -> None:
    topology = synthetic("core:4 pu:1")
    cpus = tuple(cpu._replace(kind="performance" if cpu.id < 2 else "efficiency") for cpu in topology.cpus)
    hybrid = topology._replace(cpus=cpus)
    for ranks, uses in ((2, {0, 1}), (3, {0, 1, 2, 3})):
        request = PlacementRequest(tensor_parallel_size=ranks, core_type="performance", reserve=0)
        found = assign_cpu_ranks(hybrid, request, {})
        assert {cpu for share in found.shares if share for cpu in share.cpus} == uses


def test_siblings_beyond_the_architectures_number_are_used_last() -> None:
    topology = synthetic("core:2 pu:8", "ppc64le")
    for ranks, left_out in ((8, 8), (9, 0)):
        found = assign_cpu_ranks(topology, PlacementRequest(tensor_parallel_size=ranks), {})
        assert list(found.unusable.values()) == ["smt-sibling"] * left_out


@pytest.mark.parametrize(
    ("changes", "request_", "words"),
    [
        ({"allowed": False}, {}, r"no CPU may be used \(4 not-allowed\)$"),
        (
            {"isolated": True},
            {"nodes": (0,), "tensor_parallel_size": 5},
            "5 ranks were requested, but only 4 CPUs may be used",
        ),
        ({"allowed": False}, {"oversubscribe": True}, "no CPU may be used"),
    ],
)
def test_names_why_no_cpu_may_be_used(changes: dict[str, Any], request_: dict[str, object], words: str) -> None:
    topology = synthetic("numa:1 core:4 pu:1")
    topology = topology._replace(cpus=tuple(cpu._replace(**changes) for cpu in topology.cpus))
    with pytest.raises(PlacementError, match=words):
        assign_cpu_ranks(topology, PlacementRequest(**request_), {})  # type: ignore[arg-type]


def test_names_the_option_that_uses_isolated_cpus() -> None:
    topology = synthetic("core:3 pu:1")
    cpus = tuple(cpu._replace(isolated=cpu.id == 0, allowed=cpu.id < 2) for cpu in topology.cpus)
    limited = topology._replace(cpus=cpus)
    with pytest.raises(PlacementError, match=r"\(2 not-allowed, 1 isolated\); --cpus LIST uses isolated ones"):
        assign_cpu_ranks(limited, PlacementRequest(), {1: "other.json"})


def test_names_the_plans_that_hold_every_cpu() -> None:
    held = HeldCPUs("first.json", (0, 1))
    with pytest.raises(PlacementError, match=r"no CPU may be used beside what --avoid first\.json holds"):
        make_plan(synthetic("core:2 pu:1"), PlacementRequest(avoid=(held,)))


@pytest.mark.parametrize(
    ("ranks", "cpus", "shared"), [(4, (0, 1), [(0,), (0,), (1,), (1,)]), (3, (1, 2), [(1,), (1,), (2,)])]
)
def test_ranks_that_share_cpus_are_neighbours(ranks: int, cpus: tuple[int, ...], shared: list[tuple[int, ...]]) -> None:
    found = assignment("core:3 pu:1", tensor_parallel_size=ranks, cpus=cpus, oversubscribe=True)
    assert [share.cpus for share in found.shares if share] == shared


@pytest.mark.parametrize(("quota", "nodes"), [(0.5, 1), (1.9, 1), (2.0, 2)])
def test_a_rank_on_small_nodes_has_one_if_the_quota_runs_one_thread(quota: float, nodes: int) -> None:
    topology = machine_of([[1, 1, 1]])._replace(limits=Limits(cpu_quota=quota))
    (rank,) = make_plan(topology, PlacementRequest()).ranks
    assert len(rank.nodes) == nodes


@pytest.mark.parametrize(
    ("quota", "ranks", "architecture", "nodes"),
    [(0.5, 1, "x86_64", 1), (8.0, 1, "x86_64", 2), (16.0, 2, "x86_64", 2), (16.0, 1, "ppc64le", 1)],
)
def test_a_rank_has_no_more_nodes_than_its_part_of_the_quota_uses(
    quota: float, ranks: int, architecture: str, nodes: int
) -> None:
    topology = synthetic("package:2 numa:4 core:4 pu:4", architecture)._replace(limits=Limits(cpu_quota=quota))
    plan = make_plan(topology, PlacementRequest(tensor_parallel_size=ranks))
    assert {len(rank.nodes) for rank in plan.ranks} == {nodes}
