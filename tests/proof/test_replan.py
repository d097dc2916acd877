"""Ranks that lose CPUs are planned again: near where they were, with as many threads as they have."""

from __future__ import annotations

from ompaffinity.placement.model import RankPlacement
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.proof.replan import is_possible, planned_again
from tests.placement.machines import synthetic

TWO_NODES = synthetic("package:2 numa:1 core:8 pu:1")


def planned(ranks: int = 2, **request: object) -> tuple[RankPlacement, ...]:
    wanted = PlacementRequest(tensor_parallel_size=ranks, **request)  # type: ignore[arg-type]
    return make_plan(TWO_NODES, wanted).ranks


def test_a_plan_is_possible_while_each_thread_has_a_cpu() -> None:
    (first, _) = planned(reserve=0)
    assert is_possible(first, range(16))
    assert not is_possible(first, set(range(16)) - {first.cpus[3]})


def test_a_helper_cpu_that_is_lost_leaves_the_plan_possible() -> None:
    (first, _) = planned(reserve_per_rank=1)
    assert is_possible(first, set(range(16)) - set(first.helper_cpus))


def test_with_enough_cpus_each_thread_has_one_again() -> None:
    old = planned(reserve_per_rank=1)
    new = planned_again(TWO_NODES, old, set(range(16)) - {old[0].cpus[0]})
    for before, after in zip(old, new):
        assert len(after.cpus) == len(before.cpus) == len(set(after.cpus))
        assert after.places[1:] == tuple((cpu,) for cpu in after.cpus[1:])
        assert (after.nodes, after.memory_policy) == (before.nodes, before.memory_policy)
    assert set(new[0].affinity).isdisjoint(new[1].affinity)
    assert old[0].cpus[0] not in {cpu for rank in new for cpu in rank.affinity}


def test_with_fewer_cpus_than_threads_the_team_floats() -> None:
    (old, _) = planned(reserve=0)
    (new,) = planned_again(TWO_NODES, [old], {0, 1, 2})
    assert new.affinity == (0, 1, 2)
    assert new.places == ((0, 1, 2),) * len(old.cpus)
    assert len(new.cpus) == len(old.cpus)


def test_a_team_that_floats_by_the_plan_still_does() -> None:
    (old, _) = planned(granularity="team", reserve_per_rank=1)
    (new,) = planned_again(TWO_NODES, [old], set(range(8)) - {old.cpus[0]})
    assert len(set(new.places)) == 1
    assert old.cpus[0] not in new.affinity


def test_with_fewer_cpus_than_ranks_all_of_them_share_what_is_left() -> None:
    new = planned_again(TWO_NODES, planned(4, reserve=0), {5})
    assert {rank.affinity for rank in new} == {(5,)}
