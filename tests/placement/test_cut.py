from __future__ import annotations

import collections
import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ompaffinity.placement.cut import MAX_RUNS, PoolCuts, even_cut
from ompaffinity.placement.model import Cut, Pool
from ompaffinity.topology.model import UNKNOWN
from tests.placement.machines import pool_of

Cost = tuple[int, int, int]
"""(ranks that straddle, whether the smallest is below the even share, idle cores): the smaller, the better."""


def enough_groups(sizes: list[int], cores: int) -> int:
    return next(count for count in range(1, len(sizes) + 1) if sum(sorted(sizes)[-count:]) >= cores)


def windows(sizes: list[int], ranks: int) -> list[tuple[int, int]]:
    share, several = sum(sizes) // ranks, len(sizes) > 1
    return [(share, share + 1 + several)] + [(share - 1, share + 1)] * (several and share > 1)


def brute_force(sizes: list[int], ranks: int) -> Cost:
    """Deal the cores of each group to the ranks in every way."""
    enough = enough_groups(sizes, max(1, sum(sizes) // ranks - (len(sizes) > 1)))
    states = {((0, 0),) * ranks}
    for size in sizes:
        dealt = {counts for counts in itertools.product(range(size + 1), repeat=ranks) if sum(counts) <= size}
        states = {
            tuple(sorted((have + more, touched + (more > 0)) for (have, touched), more in zip(state, counts)))
            for state in states
            for counts in dealt
        }
    best = []
    for below, (least, most) in enumerate(windows(sizes, ranks)):
        for state in states:
            if all(least <= have <= most for have, _ in state):
                straddling = sum(touched > enough for _, touched in state)
                best.append((straddling, below, sum(sizes) - sum(have for have, _ in state)))
    return min(best)


def brute_force_runs(sizes: list[int], ranks: int) -> Cost:
    """Place runs of neighbours in every way."""
    enough = enough_groups(sizes, max(1, sum(sizes) // ranks - (len(sizes) > 1)))
    group = [index for index, size in enumerate(sizes) for _ in range(size)]
    best = []
    for below, (least, most) in enumerate(windows(sizes, ranks)):
        for lengths in itertools.product(range(least, most + 1), repeat=ranks):
            idle = sum(sizes) - sum(lengths)
            if idle < 0:
                continue
            for gaps in itertools.combinations_with_replacement(range(ranks + 1), idle):
                before = collections.Counter(gaps)
                start, straddling = 0, 0
                for rank, length in enumerate(lengths):
                    start += before[rank]
                    straddling += len(set(group[start : start + length])) > enough
                    start += length
                best.append((straddling, below, idle))
    return min(best)


def cost(cut: Cut, pool: Pool, ranks: int) -> Cost:
    below = min(map(len, cut.shares)) < len(pool.cores) // ranks
    return sum(cut.straddles), int(below), len(cut.idle)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.integers(2, 4))
def test_fewest_ranks_straddle_an_l3_then_fewest_cores_idle(sizes: list[int], ranks: int) -> None:
    share = sum(sizes) // ranks
    assume(1 <= share <= max(sizes) + 1)
    pool = pool_of(sizes)
    assume("l3" in pool.levels)
    assert cost(PoolCuts().cut(pool, ranks), pool, ranks) == brute_force(sizes, ranks)


@given(st.integers(1, 4), st.integers(2, 4), st.integers(2, 4))
def test_ranks_larger_than_an_l3_are_the_best_runs(size: int, groups: int, ranks: int) -> None:
    sizes = [size] * groups
    assume(ranks <= sum(sizes))
    pool = pool_of(sizes)
    assume("l3" in pool.levels and sum(sizes) // ranks > size + 1)
    assert cost(PoolCuts().cut(pool, ranks), pool, ranks) == brute_force_runs(sizes, ranks)


@given(st.integers(2, 4), st.integers(2, 4), st.integers(2, 4))
def test_clusters_under_one_l3_are_cut_as_the_best_runs(size: int, groups: int, ranks: int) -> None:
    pool = pool_of([size * groups], size)
    assume(ranks <= len(pool.cores))
    found = PoolCuts().cut(pool, ranks)
    enough = enough_groups([size] * groups, len(pool.cores) // ranks)
    straddling = [len({core.cluster for core in share}) > enough for share in found.shares]
    assert sum(straddling) == found.straddling("cluster")
    best = None
    group = [core.cluster for core in pool.cores]
    share = len(group) // ranks
    for lengths in itertools.product((share, share + 1), repeat=ranks):
        idle = len(group) - sum(lengths)
        for gaps in itertools.combinations_with_replacement(range(ranks + 1), max(0, idle)):
            if idle < 0:
                continue
            start, crossing = 0, 0
            for rank, length in enumerate(lengths):
                start += gaps.count(rank)
                crossing += len(set(group[start : start + length])) > enough
                start += length
            best = min(best or (crossing, idle), (crossing, idle))
    assert (found.straddling("cluster"), len(found.idle)) == best


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.sampled_from((0, 0, 2, 4)),
    st.integers(1, 20),
    st.booleans(),
)
def test_every_cut_is_even_and_deals_each_core_once(sizes: list[int], cluster: int, ranks: int, whole: bool) -> None:
    assume(ranks <= sum(sizes))
    pool = pool_of(sizes, cluster, whole=whole)
    cut = PoolCuts().cut(pool, ranks)
    dealt = [core for share in cut.shares for core in share]
    assert sorted((*dealt, *cut.idle)) == sorted(pool.cores)
    counts = [len(share) for share in cut.shares]
    several = len(sizes) > 1
    assert len(counts) == ranks
    assert max(counts) - min(counts) <= 1 + several
    assert min(counts) >= sum(sizes) // ranks - several
    assert cut.straddles <= PoolCuts().cut(pool._replace(levels=pool.levels, whole=True), ranks).straddles or whole


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(2, 9), st.randoms())
def test_the_order_of_the_l3s_does_not_change_the_sizes(sizes: list[int], ranks: int, random: object) -> None:
    assume(ranks <= sum(sizes))
    shuffled = list(sizes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (PoolCuts().cut(pool_of(order), ranks) for order in (sizes, shuffled))
    assert (first.straddles, len(first.idle)) == (second.straddles, len(second.idle))
    assert sorted(map(len, first.shares)) == sorted(map(len, second.shares))


@pytest.mark.parametrize(
    ("sizes", "ranks", "expected", "idle"),
    [
        ([8, 8], 2, [8, 8], 0),
        ([8, 8], 3, [4, 4, 6], 2),
        ([8] * 4, 3, [11, 11, 10], 0),
        ([8] * 8, 3, [22, 20, 20], 2),
        ([8] * 12, 12, [8] * 12, 0),
        ([9] * 8, 9, [8] * 9, 0),
        ([4, 4], 3, [2, 2, 4], 0),
    ],
)
def test_cuts_of_machines_with_several_l3s(sizes: list[int], ranks: int, expected: list[int], idle: int) -> None:
    cut = PoolCuts().cut(pool_of(sizes), ranks)
    assert ([len(share) for share in cut.shares], len(cut.idle)) == (expected, idle)


def test_without_numa_information_only_an_l3_is_worth_an_idle_core() -> None:
    clusters = PoolCuts().cut(pool_of([12], 4, whole=True), 5)
    assert (len(clusters.idle), clusters.straddling("cluster")) == (0, 1)
    clusters = PoolCuts().cut(pool_of([12], 4), 5)
    assert (len(clusters.idle), clusters.straddling("cluster")) == (1, 0)
    caches = PoolCuts().cut(pool_of([8] * 8, whole=True), 3)
    assert (len(caches.idle), caches.straddles) == (2, (0,))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("sizes", [[2, 3], [1, 6], [4, 4, 1]])
def test_a_single_rank_has_all_cores_and_straddles_nothing(sizes: list[int], whole: bool) -> None:
    cut = PoolCuts().cut(pool_of(sizes, 2, whole=whole), 1)
    assert (len(cut.shares[0]), cut.idle, set(cut.straddles)) == (sum(sizes), (), {0})


@pytest.mark.parametrize(
    ("sizes", "cluster", "ranks", "whole", "straddling", "idle"),
    [
        # Ranks within single L3s are cut along the clusters there.
        ([2, 3], 2, 2, False, (0, 0), 1),
        ([2, 3], 2, 3, False, (0, 0), 0),
        ([2, 3], 3, 3, False, (0, 0), 0),
        ([2, 4], 3, 4, False, (0, 0), 0),
        # A whole pool leaves no core idle for a cluster.
        ([2, 3], 2, 2, True, (0, 1), 0),
        ([2, 4], 3, 2, True, (0, 1), 0),
    ],
)
def test_cuts_of_clusters_within_l3s(
    sizes: list[int], cluster: int, ranks: int, whole: bool, straddling: tuple[int, int], idle: int
) -> None:
    cut = PoolCuts().cut(pool_of(sizes, cluster, whole=whole), ranks)
    assert (cut.straddles, len(cut.idle)) == (straddling, idle)


@pytest.mark.parametrize(("known", "unknown", "ranks"), [(3, 1, 2), (5, 1, 3), (4, 2, 2)])
def test_cores_without_an_l3_beside_one_l3_do_not_make_ranks_uneven(known: int, unknown: int, ranks: int) -> None:
    pool = pool_of([known, unknown])
    cores = tuple(core._replace(l3=UNKNOWN) if core.l3 else core for core in pool.cores)
    cut = PoolCuts().cut(pool._replace(cores=cores), ranks)
    assert {len(share) for share in cut.shares} == {(known + unknown) // ranks}


def test_very_many_ranks_in_a_pool_are_cut_along_l3s_all_the_same() -> None:
    cut = PoolCuts().cut(pool_of([7] * 100), 3 * MAX_RUNS)
    assert (cut.straddles, {len(share) for share in cut.shares}) == ((0,), {3, 4, 5})
    assert even_cut((), 1) == [()]
