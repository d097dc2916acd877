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
    from collections.abc import Callable, Iterable

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


def largest_smallest(sizes: Iterable[int], ranks: int) -> int:
    """Return the most cores that every one of `ranks` can have if none straddles the groups of these sizes."""
    sizes = list(sizes)
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
    least = sorted((len(pool.cores) for pool in pools), reverse=True)[count - 1]
    certain = [pool for pool in pools if len(pool.cores) > least]
    open_choice = [pool for pool in pools if len(pool.cores) == least]
    missing = count - len(certain)

    def cost(chosen: Iterable[Pool]) -> tuple[int, int, tuple[int, ...]]:
        group = [*certain, *chosen]
        packages = len({core.package for pool in group for core in pool.cores})
        apart = sum(distance(first.node, second.node) for first, second in combinations(group, 2))
        return (-packages if spread else 0, apart, tuple(sorted(pool.node for pool in group)))

    if _choices(len(open_choice), missing) <= MAX_COMBINATIONS:
        best: Iterable[Pool] = min(combinations(open_choice, missing), key=cost)
    else:
        best = _grow(open_choice, missing, cost)
    return sorted([*certain, *best], key=lambda pool: pool.node)


def _choices(total: int, chosen: int) -> int:
    count = 1
    for step in range(min(chosen, total - chosen)):
        count = count * (total - step) // (step + 1)
        if count > MAX_COMBINATIONS:
            break
    return count


def _grow(
    pools: list[Pool], missing: int, cost: Callable[[Iterable[Pool]], tuple[int, int, tuple[int, ...]]]
) -> list[Pool]:
    chosen: list[Pool] = []
    while len(chosen) < missing:
        chosen.append(min((pool for pool in pools if pool not in chosen), key=lambda pool: cost([*chosen, pool])))
    return chosen


def _ranks_per_pool(sizes: list[int], ranks: int, smallest: int) -> list[int]:
    """Return how many ranks each pool holds: one each, then one more where it leaves the most per rank."""
    counts = [1] * len(sizes)
    for _ in range(ranks - len(sizes)):
        room = [position for position, size in enumerate(sizes) if size // (counts[position] + 1) >= smallest]
        counts[max(room, key=lambda position: (sizes[position] / (counts[position] + 1), -position))] += 1
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
    left = [len(cores) for cores in shares]
    for _ in range(total):
        largest = max(range(len(shares)), key=lambda rank: (left[rank], rank))
        if left[largest] <= 1:
            break
        left[largest] -= 1
    return [Share(cores[:keep], cores[keep:]) for cores, keep in zip(shares, left)]
