"""The division of cores among ranks.

In this order: whole cores; no rank on two nodes; the largest smallest rank (a node stays unused if
that makes it larger); the fewest ranks that straddle an L3, then a cluster; the fewest idle cores;
close or spread; lowest ids. Ranks are shared over the nodes evenly, unless fewer straddle otherwise.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heapify, heappop, heappush
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

from ompaffinity.errors import PlacementError
from ompaffinity.placement.cut import PoolCuts
from ompaffinity.placement.model import Split
from ompaffinity.placement.pools import near_order
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ompaffinity.placement.model import Cut, Pool

MAX_COMBINATIONS = 20_000
"""Node sets are compared one by one up to here; beyond, they grow from each node greedily."""


MAX_WEIGHED = 20_000
"""Up to here all ways to give ranks to nodes are weighed (shapes times cores times ranks per node)."""


def split_cores(
    pools: Sequence[Pool],
    ranks: int,
    distance: Callable[[int, int], int] | None,
    *,
    spread: bool = False,
    group: int = 0,
) -> Split:
    """Return the cores of each rank, ranks ascending by node.

    `distance` of two nodes is None where all are equally far. With `group` each so many ranks in turn are a
    tensor-parallel group, and near each other.

    Raises:
        PlacementError: there are fewer cores than ranks.
    """
    total = sum(len(pool.cores) for pool in pools)
    if ranks > total:
        raise PlacementError(f"{ranks} ranks need at least {ranks} cores, but only {total} may be used")
    smallest = largest_smallest([len(pool.cores) for pool in pools], ranks)
    large_enough = [pool for pool in pools if len(pool.cores) >= smallest]
    used = choose_pools(large_enough, ranks, distance, spread=spread)
    cuts = _best_cuts(used, ranks, smallest)
    if distance is not None and 0 < group < ranks:
        order = near_order([pool.node for pool in used], [len(cut.shares) for cut in cuts], group, distance)
        cuts = [cuts[place] for place in order]
    return Split(
        tuple(share for cut in cuts for share in cut.shares),
        tuple(cut.idle for cut in cuts for _ in cut.shares),
    )


def largest_smallest(sizes: list[int], ranks: int) -> int:
    """Return the most cores that every one of `ranks` can have if none straddles the groups of these sizes."""
    return largest_fitting(sum(sizes), lambda least: sum(size // least for size in sizes) >= ranks)


def largest_fitting(most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number of 1 to `most` that fits, 0 for none; below a number that fits all others do."""
    return bisect_left(range(1, most + 1), True, key=lambda number: not fits(number))


def choose_pools(
    pools: list[Pool], ranks: int, distance: Callable[[int, int], int] | None, *, spread: bool
) -> list[Pool]:
    """Return the pools to use, ascending by node: at most one per rank, those with the most cores."""
    count = min(ranks, len(pools))
    if count == len(pools):
        return pools
    least = sorted((len(pool.cores) for pool in pools), reverse=True)[count - 1]
    certain = [pool for pool in pools if len(pool.cores) > least]
    candidates = [pool for pool in pools if len(pool.cores) == least]
    choice = _Choice(certain, distance or _equally_far, spread)
    missing = count - len(certain)
    if distance is None and not spread:
        return sorted([*certain, *candidates[:missing]], key=pool_order)
    if comb(len(candidates), missing) <= MAX_COMBINATIONS:
        chosen = min(combinations(candidates, missing), key=choice.cost)
    else:
        chosen = choice.grown(candidates, missing)
    return sorted([*certain, *chosen], key=pool_order)


def pool_order(pool: Pool) -> tuple[bool, int]:
    """Sort pools by node; that of the CPUs that are on no node comes last."""
    return pool.node == UNKNOWN, pool.node


def _equally_far(_first: int, _second: int) -> int:
    return 0


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
            new = {pool.node: len(packages[pool.node] - seen) * self._spread for pool in left}
            best = min(left, key=lambda pool: (-new[pool.node], apart[pool.node], pool.node))
            left.remove(best)
            chosen.append(best)
            seen |= packages[best.node]
            for pool in left:
                apart[pool.node] += self._distance(pool.node, best.node)
        return tuple(chosen)


def _ranks_per_pool(sizes: list[int], ranks: int, smallest: int) -> list[int]:
    """Return how many ranks each pool holds: one each, then one more where it leaves the most per rank."""
    counts = [1] * len(sizes)
    next_share = [(-size / 2, place) for place, size in enumerate(sizes) if size // 2 >= smallest]
    heapify(next_share)
    for _ in range(ranks - len(sizes)):
        _, place = heappop(next_share)
        counts[place] += 1
        after = counts[place] + 1
        if sizes[place] // after >= smallest:
            heappush(next_share, (-sizes[place] / after, place))
    return counts


def _best_cuts(pools: list[Pool], ranks: int, smallest: int) -> list[Cut]:
    """Return the cut of each pool, every one used: the ranks shared out evenly, or else so that fewer straddle."""
    sizes = [len(pool.cores) for pool in pools]
    known = PoolCuts()
    even = [known.cut(pool, count) for pool, count in zip(pools, _ranks_per_pool(sizes, ranks, smallest))]
    if not any(any(cut.straddles) for cut in even):
        return even
    most = [min(size // smallest, ranks - len(pools) + 1) for size in sizes]
    work = known.shapes(pools) * max(sizes) * max(most) + ranks * sum(most)
    if sum(most) == ranks or work > MAX_WEIGHED:
        return even
    least = min(len(share) for cut in even for share in cut.shares)
    options = [_cuts_of_pool(known, pool, room, least) for pool, room in zip(pools, most)]
    return _weighed_cuts(options, ranks, even)


def _cuts_of_pool(known: PoolCuts, pool: Pool, most: int, least: int) -> list[Cut]:
    """Return the cuts of a pool into 1 to `most` ranks that leave each rank at least `least` cores."""
    cuts = [known.cut(pool, count) for count in range(1, most + 1)]
    return [cut for cut in cuts if min(map(len, cut.shares)) >= least]


def _weighed_cuts(options: Iterable[list[Cut]], ranks: int, even: list[Cut]) -> list[Cut]:
    """Return one of the options of each pool, `ranks` in all, so that the fewest straddle; `even` unless fewer do."""
    # best[n] is the least cost of n ranks in the pools seen so far, and the cuts of these.
    best: dict[int, tuple[list[int], list[Cut]]] = {0: ([0, 0, 0], [])}
    for cuts in options:
        grown: dict[int, tuple[list[int], list[Cut]]] = {}
        for placed, (cost, chosen) in best.items():
            for cut in cuts:
                now = placed + len(cut.shares)
                total = [before + more for before, more in zip(cost, _cost(cut))]
                if now <= ranks and (now not in grown or total < grown[now][0]):
                    grown[now] = (total, [*chosen, cut])
        best = grown
    straddling = [sum(costs) for costs in zip(*map(_cost, even))][:2]
    return best[ranks][1] if ranks in best and best[ranks][0][:2] < straddling else even


def _cost(cut: Cut) -> list[int]:
    """Return [ranks that straddle an L3, a cluster, idle cores]."""
    return [cut.straddling("l3"), cut.straddling("cluster"), len(cut.idle)]
