"""Threads, masks and places of ranks: within the quota, with helper CPUs, as teams."""

from __future__ import annotations

from typing import Any

import pytest

from ompaffinity.placement.model import RankPlacement
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.model import Limits
from tests.placement.machines import plan_for, synthetic


def under_quota(quota: float, text: str = "core:4 pu:2", **request: Any) -> tuple[RankPlacement, ...]:
    topology = synthetic(text)._replace(limits=Limits(cpu_quota=quota))
    return make_plan(topology, PlacementRequest(**request)).ranks


@pytest.mark.parametrize(("quota", "cpus"), [(0.5, (1,)), (2.0, (1, 3)), (3.9, (1, 3, 5)), (9.0, (1, 3, 5, 7))])
def test_a_rank_has_the_cores_of_as_many_threads_as_the_quota_runs(quota: float, cpus: tuple[int, ...]) -> None:
    (rank,) = under_quota(quota, reserve=0)
    assert rank.cpus == cpus
    assert rank.affinity == tuple(sorted(sibling for cpu in cpus for sibling in (cpu - 1, cpu)))


def test_a_quota_cuts_a_core_in_two() -> None:
    (rank,) = under_quota(3.0, threads_per_core=2, reserve=0)
    assert rank.cpus == (0, 1, 2)
    assert rank.affinity == (0, 1, 2, 3)


def test_ranks_that_are_not_bound_are_planned_under_a_quota() -> None:
    assert [rank.bound for rank in under_quota(1.0, bind="none", tensor_parallel_size=2)] == [False, False]


def test_the_first_place_has_what_the_other_threads_leave() -> None:
    (rank,) = plan_for("core:3 pu:2", reserve=0).ranks
    assert rank.places == ((0, 1, 2, 4), (3,), (5,))
    (single,) = plan_for("core:3 pu:1", reserve=0, bind=((2,),)).ranks
    assert single.places == ((2,),)
    (full,) = plan_for("core:3 pu:1", reserve=0).ranks
    assert full.places == ((0, 1, 2), (1,), (2,))
    (two,) = plan_for("core:3 pu:1", reserve=1).ranks
    assert two.places == ((0, 2), (1,))


def test_the_threads_of_a_team_float_within_the_rank() -> None:
    (rank,) = plan_for("core:4 pu:2", granularity="team").ranks
    assert rank.places == ((1, 3, 5, 6, 7),) * 3
    nodes = plan_for("core:4 pu:1", 2, granularity="team", reserve=0, helper_cpus="node").ranks
    assert [rank.places for rank in nodes] == [((0, 1, 2, 3), (0, 1)), ((0, 1, 2, 3), (2, 3))]


def test_helper_cpus_of_the_node_go_to_ranks_without_their_own() -> None:
    plan = plan_for("numa:1 core:7 pu:1", 3, reserve=1, helper_cpus="node")
    assert [(rank.cpus, rank.helper_cpus) for rank in plan.ranks] == [((0, 1), (2,)), ((3, 4), ()), ((5, 6), ())]
    assert [rank.affinity for rank in plan.ranks] == [(0, 1, 2), tuple(range(7)), tuple(range(7))]
    siblings = plan_for("core:2 pu:2", 2, reserve=0, helper_cpus="node")
    assert [rank.affinity for rank in siblings.ranks] == [(0, 1), (2, 3)]


def test_the_nodes_of_listed_cpus_are_those_that_the_user_names_for_the_gpu() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    request = PlacementRequest(tensor_parallel_size=2, numa_bind_cpus=((0,), (1,)), gpus=(1, 0))
    assert [rank.nodes for rank in make_plan(topology, request).ranks] == [(0,), (0,)]
    named = make_plan(topology, request._replace(numa_bind_nodes=(1, 0)))
    assert [(rank.cpus, rank.nodes) for rank in named.ranks] == [((1,), (0,)), ((0,), (1,))]
