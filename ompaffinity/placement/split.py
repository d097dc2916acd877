"""The division of cores among ranks, and which of a rank's cores are kept from its OpenMP threads.

In this order: whole cores; no rank on two nodes; the largest smallest rank (a node stays
unused if that makes it larger); the fewest idle cores; close or spread; lowest ids.
"""

from __future__ import annotations

from itertools import combinations

from ompaffinity.errors import PlacementError
from ompaffinity.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.cores import Core, Pool
    from ompaffinity.placement.request import PlacementRequest

MAX_COMBINATIONS = 20_000
"""Node sets are compared one by one up to here; beyond, they grow from each node greedily."""


class Share(NamedTuple):
    """The cores of one rank: those with OpenMP threads and those reserved from them, in core order."""

    compute: tuple[Core, ...]
    reserved: tuple[Core, ...] = ()


def split_cores(
    pools: list[Pool], ranks: int, distance: Callable[[int, int], int], *, spread: bool = False
) -> list[tuple[Core, ...]]:
    """Return the cores of each rank, whole and disjoint, ranks ascending by node.

    Raises:
        PlacementError: there are fewer cores than ranks.
    """
    total = sum(len(pool.cores) for pool in pools)
    if ranks > total:
        raise PlacementError(f"{ranks} ranks need at least {ranks} cores, but only {total} may be used")
    smallest = largest_smallest([len(pool.cores) for pool in pools], ranks)
    used = _choose_pools([pool for pool in pools if len(pool.cores) >= smallest], ranks, distance, spread)
    counts = _ranks_per_pool([len(pool.cores) for pool in used], ranks, smallest)
    shares = []
    for pool, count in zip(used, counts):
        shares += _cut(pool.cores, count)
    return shares


def largest_smallest(sizes: list[int], ranks: int) -> int:
    """Return the most cores that every one of `ranks` can have if none straddles the groups of these sizes."""
    low, high = 0, max(sizes, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(size // middle for size in sizes) >= ranks:
            low = middle
        else:
            high = middle - 1
    return low


def _choose_pools(pools: list[Pool], ranks: int, distance: Callable[[int, int], int], spread: bool) -> list[Pool]:
    """Return the pools to use, ascending by node: at most one per rank, those with the most cores."""
    count = min(ranks, len(pools))
    if count == len(pools):
        return pools
    least = sorted((len(pool.cores) for pool in pools), reverse=True)[count - 1]
    certain = [pool for pool in pools if len(pool.cores) > least]
    candidates = [pool for pool in pools if len(pool.cores) == least]
    choice = _Choice(certain, distance, spread)
    missing = count - len(certain)
    from math import comb

    if comb(len(candidates), missing) <= MAX_COMBINATIONS:
        chosen = min(combinations(candidates, missing), key=choice.cost)
    else:
        chosen = choice.grown(candidates, missing)
    return sorted([*certain, *chosen], key=lambda pool: pool.node)


class _Choice:
    """What it costs to use some pools beside those that are certain."""

    def __init__(self, certain: list[Pool], distance: Callable[[int, int], int], spread: bool) -> None:
        self._distance = distance
        self._spread = spread
        self._certain = certain
        self._packages = {core.package for pool in certain for core in pool.cores}

    def cost(self, chosen: tuple[Pool, ...]) -> tuple[int, int, list[int]]:
        """Return (fewest packages if `spread`, sum of distances, nodes): the smaller, the better."""
        packages = self._packages.union(core.package for pool in chosen for core in pool.cores) if self._spread else ()
        apart = sum(self._distance(first.node, second.node) for first, second in combinations(chosen, 2))
        apart += sum(self._distance(first.node, second.node) for first in self._certain for second in chosen)
        return -len(packages), apart, sorted(pool.node for pool in chosen)

    def grown(self, candidates: list[Pool], missing: int) -> tuple[Pool, ...]:
        """Return a good choice where there are too many to compare: the best next one, again and again."""
        apart = {
            pool.node: sum(self._distance(pool.node, other.node) for other in self._certain) for pool in candidates
        }
        packages = {pool.node: {core.package for core in pool.cores} for pool in candidates}
        seen = set(self._packages)
        left, chosen = list(candidates), []
        for _ in range(missing):
            new = {pool.node: len(packages[pool.node] - seen) if self._spread else 0 for pool in left}
            best = min(left, key=lambda pool: (-new[pool.node], apart[pool.node], pool.node))
            left.remove(best)
            chosen.append(best)
            seen |= packages[best.node]
            for pool in left:
                apart[pool.node] += self._distance(pool.node, best.node)
        return tuple(chosen)


def _ranks_per_pool(sizes: list[int], ranks: int, smallest: int) -> list[int]:
    """Return how many ranks each pool holds: one each, then one more where it leaves the most per rank."""
    if len(sizes) == 1:
        return [ranks]
    from heapq import heapify, heapreplace

    counts = [1] * len(sizes)
    next_share = [(-size / 2, place) for place, size in enumerate(sizes) if size // 2 >= smallest]
    heapify(next_share)
    for _ in range(ranks - len(sizes)):
        _, place = next_share[0]
        counts[place] += 1
        after = counts[place] + 1
        heapreplace(next_share, (-sizes[place] / after if sizes[place] // after >= smallest else 1, place))
    return counts


def _cut(cores: tuple[Core, ...], count: int) -> list[tuple[Core, ...]]:
    """Return `count` runs of neighbouring cores whose sizes differ by at most one, the larger first."""
    size, larger = divmod(len(cores), count)
    runs, start = [], 0
    for position in range(count):
        end = start + size + (position < larger)
        runs.append(cores[start:end])
        start = end
    return runs


def wanted_reserve(request: PlacementRequest, rule: ArchitectureRule) -> int:
    """Return how many cores should be kept back in all."""
    if request.reserve is not None:
        total = request.reserve
    elif request.reserve_per_rank is not None:
        total = request.reserve_per_rank * request.ranks
    else:
        total = request.ranks if rule.reserve_per_rank else 1
    return total + (request.ranks if request.kv_transfer else 0)


def reserve_cores(shares: list[tuple[Core, ...]], total: int) -> list[Share]:
    """Take `total` cores, one by one, from the rank with the most left, the last among equals, its highest first.

    A rank always keeps one core; fewer than `total` are taken where nothing else is left.
    """
    sizes = [len(cores) for cores in shares]
    total = min(total, sum(sizes) - len(sizes))
    low, high = 1, max(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(max(0, size - middle) for size in sizes) <= total else (middle + 1, high)
    # Cut down to `low` cores; what is still missing then comes from the last of those that have so many.
    missing = total - sum(max(0, size - low) for size in sizes)
    left = [min(size, low) for size in sizes]
    for rank in [rank for rank, size in enumerate(left) if size == low > 1][::-1][:missing]:
        left[rank] -= 1
    return [Share(cores[:keep], cores[keep:]) for cores, keep in zip(shares, left)]
