from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ompaffinity.placement.model import Core, Reserve, Share, Split
from ompaffinity.placement.reserve import reserve_cores
from ompaffinity.placement.split import split_cores
from ompaffinity.topology.model import UNKNOWN
from tests.placement.machines import codes, plan_for, pool_of, reasons


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 40))
def test_reserved_cores_come_from_the_largest_rank_and_leave_a_core_to_each(sizes: list[int], total: int) -> None:
    cores = list(pool_of([sum(sizes)]).cores)
    shares = tuple(tuple(cores.pop(0) for _ in range(size)) for size in sizes)
    reserved = reserve_cores(Split(shares, ((),) * len(shares)), Reserve(0, total))
    assert tuple(share.compute + share.reserved for share in reserved) == shares
    left = list(sizes)
    for _ in range(total):
        largest = max(range(len(left)), key=lambda rank: (left[rank], rank))
        left[largest] -= left[largest] > 1
    assert [len(share.compute) for share in reserved] == left


@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=3),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0, 30),
    st.integers(0, 3),
)
def test_idle_cores_go_first(shapes: list[list[int]], whole: bool, ranks: int, total: int, per_rank: int) -> None:
    pools = [pool_of(sizes, node=-1 if whole else node, whole=whole) for node, sizes in enumerate(shapes)]
    pools = pools[:1] if whole else pools
    assume(ranks <= sum(len(pool.cores) for pool in pools))
    split = split_cores(pools, ranks, lambda _first, _second: 20)
    shares = reserve_cores(split, Reserve(per_rank, total))
    wanted = per_rank * ranks + total
    taken = [core for share in shares for core in share.reserved]
    idle = {core for cores in split.idle for core in cores}
    assert all(share.compute for share in shares)
    assert len({core for share in shares for core in (*share.compute, *share.reserved)}) == sum(
        len(share.compute) + len(share.reserved) for share in shares
    )
    assert len(taken) <= wanted
    if not whole and per_rank == 0 and len(taken) < wanted:
        assert idle <= set(taken)
        assert all(len(share.compute) == 1 for share in shares)
    assert all(len(share.reserved) >= per_rank or len(share.compute) == 1 for share in shares)
    for before, share in zip(split.shares, shares):
        own = [core for core in share.reserved if core in before]
        assert (*share.compute, *own) == before
        foreign = set(share.reserved) - set(before)
        assert foreign <= idle
        if whole:
            assert {core.l3 for core in foreign} <= {core.l3 for core in before}
        else:
            assert {core.node for core in foreign} <= {core.node for core in before}
    for cores in set(split.idle):
        sizes = [len(share.compute) + len(share.reserved) for share, own in zip(shares, split.idle) if own == cores]
        assert not cores or max(sizes) - min(sizes) <= 2


def cores_under(l3: int, count: int, node: int = UNKNOWN) -> tuple[Core, ...]:
    return tuple(
        Core((number,), (number,), node, UNKNOWN, UNKNOWN, 0, l3, UNKNOWN)
        for number in range(100 * l3 + 10 * node + 10, 100 * l3 + 10 * node + 10 + count)
    )


def two_ranks(first: tuple[Core, ...], second: tuple[Core, ...], idle: tuple[Core, ...], wanted: Reserve) -> list[int]:
    """Return how many cores of each rank are left and how many it gets, of two ranks of one pool."""
    shares = reserve_cores(Split((first, second), (idle, idle)), wanted)
    return [count for share in shares for count in (len(share.compute), len(share.reserved))]


def test_without_numa_information_an_idle_core_that_makes_ranks_uneven_stays_idle() -> None:
    one, other = cores_under(0, 7), cores_under(1, 4)
    # Two idle cores under the L3 of the first rank make it larger by two, no more of them do.
    assert two_ranks(one[:4], other, one[4:], Reserve(0, 3)) == [4, 2, 3, 1]
    assert two_ranks(one[:4], other, one[4:], Reserve(3, 0)) == [3, 3, 1, 3]


def test_idle_cores_near_both_ranks_go_to_whichever_reserves_one() -> None:
    cores = cores_under(0, 13)
    assert two_ranks(cores[:7], cores[7:11], cores[11:], Reserve(1, 0)) == [7, 1, 4, 1]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 6), st.integers(0, 6))
def test_idle_cores_go_one_by_one_to_the_smallest_rank_near_them(sizes: list[int], idle: int, total: int) -> None:
    cores = list(cores_under(0, sum(sizes) + idle, node=0))
    shares = tuple(tuple(cores.pop(0) for _ in range(size)) for size in sizes)
    reserved = reserve_cores(Split(shares, (tuple(cores),) * len(sizes)), Reserve(0, min(total, idle)))
    for _ in range(min(total, idle)):
        smallest = min(range(len(sizes)), key=lambda rank: (sizes[rank], -rank))
        sizes[smallest] += 1
    assert [len(share.cores) for share in reserved] == sizes
    assert [share.compute for share in reserved] == list(shares)


def test_a_rank_that_cannot_give_a_core_up_does_not_keep_others_from_idle_cores() -> None:
    first, second = cores_under(0, 2, node=0), cores_under(1, 1, node=1)
    shares = reserve_cores(Split((first[:1], second), (first[1:], ())), Reserve(0, 2))
    assert shares == [Share(first[:1], first[1:]), Share(second)]


def test_an_idle_core_under_an_l3_of_the_rank_is_taken_first() -> None:
    near, far = cores_under(0, 3, node=0), cores_under(1, 2, node=0)
    (share,) = reserve_cores(Split((near[:2],), ((*near[2:], *far),)), Reserve(0, 2))
    assert share == Share(near[:2], (near[2], far[1]))


def test_idle_cores_on_a_node_without_ranks_stay_idle() -> None:
    here, elsewhere = cores_under(0, 3, node=0), cores_under(1, 2, node=1)
    (share,) = reserve_cores(Split((here,), (elsewhere,)), Reserve(0, 1))
    assert share == Share(here[:2], here[2:])


def test_a_larger_reserve_than_the_machine_leaves_one_core_to_each_rank() -> None:
    plan = plan_for("core:8 pu:1", 2, reserve_per_rank=999_999_999)
    assert [(len(rank.cpus), len(rank.helper_cpus)) for rank in plan.ranks] == [(1, 3), (1, 3)]


def test_each_rank_gets_an_idle_core_before_the_largest_gives_one_up() -> None:
    plan = plan_for("package:1 l3:2 core:8 pu:1", 3)
    assert [(len(rank.cpus), rank.helper_cpus) for rank in plan.ranks] == [(4, (14,)), (4, (15,)), (5, (13,))]
    assert plan.left_out == ()


def test_all_of_a_total_is_reserved() -> None:
    plan = plan_for("package:1 l3:2 core:8 pu:1", 3, reserve=6)
    assert [len(rank.cpus) for rank in plan.ranks] == [4, 3, 3]
    assert len(plan.reserved) == 6


@pytest.mark.parametrize(("reserve", "left"), [(0, (14, 15)), (1, (14,)), (2, ())])
def test_idle_cores_without_a_use_stay_left_out(reserve: int, left: tuple[int, ...]) -> None:
    assert reasons(plan_for("package:1 l3:2 core:8 pu:1", 3, reserve=reserve)).get("remainder", ()) == left


def test_reports_more_reserved_cores_than_there_are() -> None:
    plan = plan_for("core:3 pu:1", 2, reserve=9)
    assert [len(rank.cpus) for rank in plan.ranks] == [1, 1]
    assert codes(plan)["reserve-impossible"] == "warning"


@pytest.mark.parametrize("request_", [{}, {"reserve_per_rank": 1}, {"reserve": 0, "kv_transfer": True}])
def test_what_is_reserved_per_rank_comes_from_each_rank(request_: dict[str, Any]) -> None:
    plan = plan_for("numa:2 core:8 pu:1", 3, **request_)
    assert [(len(rank.cpus), len(rank.helper_cpus)) for rank in plan.ranks] == [(3, 1), (3, 1), (7, 1)]


def test_a_total_comes_from_the_largest_rank() -> None:
    plan = plan_for("numa:2 core:8 pu:1", 3, reserve=3)
    assert [(len(rank.cpus), len(rank.helper_cpus)) for rank in plan.ranks] == [(4, 0), (4, 0), (5, 3)]
