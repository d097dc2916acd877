"""How the cores of one pool are cut into ranks: along L3 caches first, then along clusters.

The share of a rank is even: its pool's cores divided by the pool's ranks, rounded down. A rank
straddles a level if it touches more groups of that level (L3s, clusters) than a rank of that size
needs. In this order: fewest ranks that straddle an L3, then a cluster; fewest idle cores; lowest ids.
Ranks of a pool differ by one core at most. Where the pool has several L3s they may differ by two, and
the smallest may be one core below the even share, if that leaves fewer ranks that straddle.

Cores are places in the pool here, 0 to n - 1, and a level is a list with each core's group. So pools of the
same shape are cut once, and the numbers of CPUs decide nothing.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import TYPE_CHECKING

from ompaffinity.placement.model import Cut
from ompaffinity.placement.runs import best_runs
from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ompaffinity.placement.model import Pool

    Shape = tuple[tuple[tuple[int, ...], ...], int, bool, int | None]

MAX_RUNS = 64
"""Up to so many ranks in a pool every cut into runs is weighed; beyond, runs are even and L3s are seen to alone."""


class PoolCuts:
    """Cuts of pools, each shape and number of ranks worked out once."""

    def __init__(self) -> None:
        self._cutters: dict[Shape, _Cutter] = {}
        self._by_pool: dict[int, _Cutter] = {}

    def cut(self, pool: Pool, ranks: int) -> Cut:
        """Return the best cut of a pool's cores into `ranks` shares, by the order in this module's docstring."""
        places = self._cutter(pool).cut(ranks)
        cores = pool.cores
        shares = tuple(tuple(cores[place] for place in share) for share in places.shares)
        return Cut(shares, tuple(cores[place] for place in places.idle), pool.levels, places.straddles)

    def shapes(self, pools: Iterable[Pool]) -> int:
        """Return how many shapes these pools have."""
        return len({id(self._cutter(pool)) for pool in pools})

    def _cutter(self, pool: Pool) -> _Cutter:
        if id(pool) not in self._by_pool:
            shape = _shape(pool)
            self._by_pool[id(pool)] = self._cutters.setdefault(shape, _Cutter(*shape))
        return self._by_pool[id(pool)]


def _shape(pool: Pool) -> Shape:
    labels = []
    for level in pool.levels:
        numbers: dict[int, int] = {}
        labels.append(tuple(numbers.setdefault(getattr(core, level), len(numbers)) for core in pool.cores))
    several_l3s = "l3" in pool.levels and len({core.l3 for core in pool.cores} - {UNKNOWN}) > 1
    return tuple(labels), len(pool.cores), pool.whole, pool.levels.index("l3") if several_l3s else None


class _Places(NamedTuple):
    shares: tuple[tuple[int, ...], ...]
    idle: tuple[int, ...]
    straddles: tuple[int, ...]


def even_cut(places: Sequence[int], ranks: int) -> list[Sequence[int]]:
    """Return `ranks` runs of neighbours whose sizes differ by at most one, the larger first."""
    size, larger = divmod(len(places), ranks)
    runs, start = [], 0
    for position in range(ranks):
        end = start + size + (position < larger)
        runs.append(places[start:end])
        start = end
    return runs


class _Cutter:
    """The cuts of one shape: `labels[level][place]` is a group, `l3` the level of the L3s if there are several."""

    def __init__(self, labels: tuple[tuple[int, ...], ...], size: int, whole: bool, l3: int | None) -> None:
        self._labels, self._size, self._whole, self._l3 = labels, size, whole, l3
        self._order = _larger_groups_first(list(range(size)), labels)
        self._group_sizes = [sorted(map(len, _groups(self._order, label)), reverse=True) for label in labels]
        self._known: dict[int, _Places] = {}

    def cut(self, ranks: int) -> _Places:
        """Return the best cut into `ranks`."""
        if ranks not in self._known:
            self._known[ranks] = self._best(ranks)
        return self._known[ranks]

    def _best(self, ranks: int) -> _Places:
        share, several = self._size // ranks, self._l3 is not None
        search = _CutSearch(self._labels, self._order, self._l3, ranks, self._enough(share - several))
        best = search.places(even_cut(self._order, ranks))
        if ranks == 1:
            return best._replace(straddles=(0,) * len(self._labels))
        if not any(best.straddles):
            return best
        for least in (share, share - 1) if several and share > 1 else (share,):
            for gaps in (False, True) if self._whole else (True,):
                shares = search.shares(least, least + 1 + several, gaps=gaps, within_l3s=not self._whole)
                cut = best if shares is None else search.places(shares)
                # All cores of a whole pool are shared out; only an L3 is worth an idle core.
                l3, leaves_idle = self._l3, gaps and self._whole
                is_allowed = not leaves_idle or (l3 is not None and cut.straddles[l3] < best.straddles[l3])
                if is_allowed and cut.straddles < best.straddles:
                    best = cut
        return best

    def _enough(self, cores: int) -> list[int]:
        """Return for each level how many of its groups, the largest first, hold that many cores; at least one."""
        return [
            next(count for count, held in enumerate(accumulate(sizes), start=1) if held >= cores)
            for sizes in self._group_sizes
        ]


class _CutSearch:
    """One shape and number of ranks; a rank may touch `enough[level]` groups of a level without straddling it."""

    def __init__(
        self, labels: tuple[tuple[int, ...], ...], order: list[int], l3: int | None, ranks: int, enough: list[int]
    ) -> None:
        self._labels, self._order, self._l3, self._ranks, self._enough = labels, order, l3, ranks, enough
        self._weighed: dict[tuple[object, ...], tuple[tuple[int, ...], int]] = {}

    def places(self, shares: Iterable[Sequence[int]]) -> _Places:
        """Return the shares in the pool's order, with what is idle and what straddles."""
        ordered = sorted(tuple(sorted(share)) for share in shares)
        used = {place for share in ordered for place in share}
        idle = tuple(place for place in range(len(self._order)) if place not in used)
        return _Places(tuple(ordered), idle, self._straddles(ordered))

    def _straddles(self, shares: Sequence[Sequence[int]], first_level: int = 0) -> tuple[int, ...]:
        levels = list(zip(self._labels, self._enough))[first_level:]
        return tuple(
            sum(len({label[place] for place in share}) > enough for share in shares) for label, enough in levels
        )

    def shares(self, least: int, most: int, *, gaps: bool, within_l3s: bool) -> list[Sequence[int]] | None:
        """Return the best ranks of `least` to `most` cores that are found, None for none."""
        if within_l3s and self._l3 is not None and self._enough[self._l3] == 1:
            return self._within_l3s(self._l3, least, most)
        return self._runs(self._order, self._ranks, least, most, 0, gaps=gaps)

    def _within_l3s(self, l3: int, least: int, most: int) -> list[Sequence[int]]:
        """Give as many ranks as fit to single L3s; what these leave goes to the others."""
        caches = _groups(self._order, self._labels[l3])
        fitting = [len(cache) // least for cache in caches]
        crossing = self._ranks - sum(fitting)
        shares: list[Sequence[int]] = []
        if crossing <= 0:
            for cache, count in zip(caches, self._ranks_per_l3(caches, least, most, l3 + 1)):
                shares += self._in_one_l3(cache, count, least, most, l3 + 1)
            return shares
        rest: list[int] = []
        surplus = len(self._order) - sum(fitting) * least - crossing * most
        for cache, count in zip(caches, fitting):
            grown = max(0, min(surplus, len(cache) % least, count * (most - least)))
            surplus -= grown
            end = count * least + grown
            shares += even_cut(cache[:end], count) if count else ()
            rest += cache[end:]
        return [*shares, *even_cut(rest[: crossing * most], crossing)]

    def _in_one_l3(self, cache: Sequence[int], ranks: int, least: int, most: int, after: int) -> list[Sequence[int]]:
        if not ranks:
            return []
        plain = even_cut(cache[: ranks * most], ranks)
        if not any(self._straddles(plain, after)):
            return plain
        return self._runs(cache, ranks, least, most, after, gaps=True) or plain

    def _ranks_per_l3(self, caches: list[list[int]], least: int, most: int, after: int) -> list[int]:
        """Return how many ranks each L3 takes, if all fit: fewest straddles within, then most cores."""
        if after < len(self._labels) and len(caches) * self._ranks <= MAX_RUNS**2:
            return self._weighed_ranks_per_l3(caches, least, most, after)
        counts = [0] * len(caches)
        gains = [(-min(len(cache), most), 0, place) for place, cache in enumerate(caches) if len(cache) >= least]
        heapify(gains)
        for _ in range(self._ranks):
            _, taken, place = heappop(gains)
            counts[place] = count = taken + 1
            size = len(caches[place])
            if (count + 1) * least <= size:
                heappush(gains, (min(size, count * most) - min(size, (count + 1) * most), count, place))
        return counts

    def _weighed_ranks_per_l3(self, caches: list[list[int]], least: int, most: int, after: int) -> list[int]:
        # best[n] is the least cost of n ranks in the caches seen so far, and how many each of these takes.
        best: dict[int, tuple[tuple[tuple[int, ...], int], tuple[int, ...]]] = {0: (((), 0), ())}
        for cache in caches:
            options = [
                self._cost_in_one_l3(cache, count, least, most, after)
                for count in range(min(self._ranks, len(cache) // least) + 1)
            ]
            grown: dict[int, tuple[tuple[tuple[int, ...], int], tuple[int, ...]]] = {}
            for placed, ((straddles, used), counts) in best.items():
                for count, (more, cores) in enumerate(options):
                    total = tuple(map(sum, zip(straddles, more))) if straddles else more
                    entry = ((total, used + cores), (*counts, count))
                    if placed + count <= self._ranks and (placed + count not in grown or entry < grown[placed + count]):
                        grown[placed + count] = entry
            best = grown
        return list(best[self._ranks][1])

    def _cost_in_one_l3(
        self, cache: list[int], count: int, least: int, most: int, after: int
    ) -> tuple[tuple[int, ...], int]:
        shape = tuple(tuple(map(len, _groups(cache, label))) for label in self._labels[after:])
        key = (shape, count, least, most)
        if key not in self._weighed:
            shares = self._in_one_l3(cache, count, least, most, after)
            self._weighed[key] = (self._straddles(shares, after), -sum(map(len, shares)))
        return self._weighed[key]

    def _runs(
        self, places: Sequence[int], ranks: int, least: int, most: int, first_level: int, *, gaps: bool
    ) -> list[Sequence[int]] | None:
        """Return the best runs of neighbours, None for none or where there are too many to weigh."""
        if ranks > MAX_RUNS:
            return None
        levels = list(zip(self._labels, self._enough))[first_level:]
        return best_runs(places, ranks, least, most, levels, gaps=gaps)


def _groups(places: Iterable[int], label: Sequence[int]) -> list[list[int]]:
    """Return the places by their group, groups and places in the order given."""
    groups: dict[int, list[int]] = {}
    for place in places:
        groups.setdefault(label[place], []).append(place)
    return list(groups.values())


def _larger_groups_first(places: list[int], labels: Sequence[Sequence[int]]) -> list[int]:
    """Return the places with the groups of each level sorted by what they hold, so that their numbers do not count."""
    if not labels:
        return places
    groups = [_larger_groups_first(group, labels[1:]) for group in _groups(places, labels[0])]
    groups.sort(key=lambda group: [[-len(part) for part in _groups(group, label)] for label in labels])
    return [place for group in groups for place in group]
