"""How the cores of one pool are cut into ranks: along L3 caches first, then along clusters.

The share of a rank is even: its pool's cores divided by the pool's ranks, rounded down. A rank
straddles a level if it touches more groups of that level (L3s, clusters) than a rank of that size
needs. In this order: fewest ranks that straddle an L3, then a cluster; fewest idle cores; lowest ids.
Ranks of a pool differ by one core at most. Where the pool has several L3s they may differ by two, and
the smallest may be one core below the even share, if that leaves fewer ranks that straddle.
"""

from __future__ import annotations

from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ompaffinity.placement.cores import Core, Pool

MAX_RUNS = 64
"""Up to so many ranks in a pool every cut into runs is weighed; beyond, runs are even and L3s are seen to alone."""


class Cut(NamedTuple):
    """The cores of each rank of a pool, those that are left idle, and how many ranks straddle each level."""

    shares: tuple[tuple[Core, ...], ...]
    idle: tuple[Core, ...] = ()
    levels: tuple[str, ...] = ()
    straddles: tuple[int, ...] = ()

    def straddling(self, level: str) -> int:
        """Return how many ranks straddle this level."""
        return sum(count for name, count in zip(self.levels, self.straddles) if name == level)

    @property
    def cost(self) -> tuple[tuple[int, ...], int]:
        """The smaller, the better."""
        return self.straddles, len(self.idle)


def even_cut(cores: Sequence[Core], ranks: int) -> tuple[tuple[Core, ...], ...]:
    """Return `ranks` runs of neighbouring cores whose sizes differ by at most one, the larger first."""
    size, larger = divmod(len(cores), ranks)
    runs, start = [], 0
    for position in range(ranks):
        end = start + size + (position < larger)
        runs.append(tuple(cores[start:end]))
        start = end
    return tuple(runs)


def cut_pool(pool: Pool, ranks: int) -> Cut:
    """Return the best cut of a pool's cores into `ranks` shares, by the order that this module's docstring gives."""
    plain = even_cut(pool.cores, ranks)
    if ranks == 1 or len(pool.cores) == ranks or not pool.levels:
        return Cut(plain, (), pool.levels, (0,) * len(pool.levels))
    several_l3s = "l3" in pool.levels and len({core.l3 for core in pool.cores} - {UNKNOWN}) > 1
    cutter = _Cutter(pool, ranks, several_l3s)
    best = Cut(plain, (), pool.levels, cutter.straddles(plain))
    if not any(best.straddles):
        return best
    share = len(pool.cores) // ranks
    for least in (share, share - 1) if several_l3s and share > 1 else (share,):
        for gaps in (False, True) if pool.whole else (True,):
            cut = cutter.best(least, least + 1 + several_l3s, gaps=gaps)
            if cut is None:
                continue
            if gaps and pool.whole:
                # All cores of such a pool are shared out; only an L3 is worth an idle core.
                better = cut.straddling("l3") < best.straddling("l3") and cut.straddles <= best.straddles
            else:
                better = cut.cost < best.cost if least == share else cut.straddles < best.straddles
            best = cut if better else best
    return best


def _needed(sizes: Iterable[int], cores: int) -> int:
    """Return how many groups, the largest first, hold that many cores."""
    count = 0
    for size in sorted(sizes, reverse=True):
        if cores <= 0:
            break
        cores, count = cores - size, count + 1
    return count


class _Cutter:
    """One pool, its cores in an order that does not depend on their numbers, and how many groups a rank may touch."""

    def __init__(self, pool: Pool, ranks: int, several_l3s: bool) -> None:
        self._pool = pool
        self._ranks = ranks
        self._place = {core: place for place, core in enumerate(pool.cores)}
        self._cores = _larger_groups_first(pool.cores, pool.levels)
        share = max(1, len(pool.cores) // ranks - several_l3s)
        self._enough = [_needed(map(len, _groups(pool.cores, level)), share) for level in pool.levels]
        self._l3_level = pool.levels.index("l3") if several_l3s else None

    def straddles(self, shares: Iterable[Sequence[Core]]) -> tuple[int, ...]:
        """Return how many of these ranks straddle each level."""
        counts = [0] * len(self._pool.levels)
        for cores in shares:
            for index, level in enumerate(self._pool.levels):
                counts[index] += len({getattr(core, level) for core in cores}) > self._enough[index]
        return tuple(counts)

    def best(self, least: int, most: int, *, gaps: bool) -> Cut | None:
        """Return the best cut into ranks of `least` to `most` cores that this module finds, None for none."""
        l3 = self._l3_level
        if l3 is not None and self._enough[l3] == 1 and not self._pool.whole:
            shares = self._within_l3s(least, most)
        else:
            shares = self._runs(self._cores, self._ranks, least, most, 0, gaps=gaps)
        if shares is None:
            return None
        place = self._place.__getitem__
        ordered = sorted((tuple(sorted(share, key=place)) for share in shares), key=lambda share: place(share[0]))
        used = {core for share in shares for core in share}
        idle = tuple(core for core in self._pool.cores if core not in used)
        return Cut(tuple(ordered), idle, self._pool.levels, self.straddles(ordered))

    def _within_l3s(self, least: int, most: int) -> list[Sequence[Core]] | None:
        """Give as many ranks as fit to single L3s; what these leave goes to the others."""
        caches = _groups(self._cores, "l3")
        fitting = [len(cache) // least for cache in caches]
        crossing = self._ranks - sum(fitting)
        after = self._pool.levels.index("l3") + 1
        shares: list[Sequence[Core]] = []
        if crossing <= 0:
            for cache, count in zip(caches, self._ranks_per_l3(caches, least, most, after)):
                shares += self._in_one_l3(cache, count, least, most, after)
            return shares
        rest: list[Core] = []
        surplus = len(self._cores) - sum(fitting) * least - crossing * most
        for cache, count in zip(caches, fitting):
            grown = max(0, min(surplus, len(cache) - count * least, count * (most - least)))
            surplus -= grown
            end = count * least + grown
            shares += even_cut(cache[:end], count) if count else ()
            rest += cache[end:]
        return [*shares, *even_cut(rest[: crossing * most], crossing)]

    def _in_one_l3(
        self, cache: Sequence[Core], ranks: int, least: int, most: int, after: int
    ) -> Sequence[Sequence[Core]]:
        if not ranks:
            return ()
        plain = even_cut(cache[: ranks * most], ranks)
        if not any(self.straddles(plain)[after:]):
            return plain
        return self._runs(cache, ranks, least, most, after, gaps=True) or plain

    def _ranks_per_l3(self, caches: list[list[Core]], least: int, most: int, after: int) -> list[int]:
        """Return how many ranks each L3 takes, if all fit: fewest straddles within, then most cores."""
        if after < len(self._pool.levels) and len(caches) * self._ranks <= MAX_RUNS**2:
            return self._weighed_ranks_per_l3(caches, least, most, after)
        from heapq import heapify, heappop, heappush

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

    def _weighed_ranks_per_l3(self, caches: list[list[Core]], least: int, most: int, after: int) -> list[int]:
        # best[n] is the least cost of n ranks in the caches seen so far, and how many each of these takes.
        best: dict[int, tuple[tuple[tuple[int, ...], int], tuple[int, ...]]] = {0: (((), 0), ())}
        for cache in caches:
            options = []
            for count in range(min(self._ranks, len(cache) // least) + 1):
                shares = self._in_one_l3(cache, count, least, most, after)
                options.append((self.straddles(shares)[after:], -sum(map(len, shares))))
            grown: dict[int, tuple[tuple[tuple[int, ...], int], tuple[int, ...]]] = {}
            for placed, ((straddles, used), counts) in best.items():
                for count, (more, cores) in enumerate(options):
                    total = tuple(map(sum, zip(straddles, more))) if straddles else more
                    entry = ((total, used + cores), (*counts, count))
                    if placed + count <= self._ranks and (placed + count not in grown or entry < grown[placed + count]):
                        grown[placed + count] = entry
            best = grown
        return list(best[self._ranks][1])

    def _runs(
        self, cores: Sequence[Core], ranks: int, least: int, most: int, first_level: int, *, gaps: bool
    ) -> list[Sequence[Core]] | None:
        """Return the best runs of neighbours, None for none; only with `gaps` there are idle cores between them."""
        total = len(cores)
        if ranks > MAX_RUNS:
            return None
        labels = [(_labels(cores, level), self._enough[index]) for index, level in enumerate(self._pool.levels)]
        labels = labels[first_level:]
        scale = ranks + 1
        # after[start] is the least cost of all later ranks on the cores from `start` on: straddles, then idle cores.
        after = {start: total - start for start in range(total + 1)} if gaps else {total: 0}
        choices: list[dict[int, int]] = []
        for rank in reversed(range(ranks)):
            costs: dict[int, int] = {}
            sizes: dict[int, int] = {}
            for start in range(total - (ranks - rank) * least, rank * least - 1, -1):
                cost, chosen = (costs[start + 1] + 1, 0) if gaps and start + 1 in costs else (None, 0)
                for size in range(least, most + 1):
                    later = after.get(start + size)
                    if later is None:
                        continue
                    straddles = 0
                    for label, enough in labels:
                        straddles = straddles * scale + (label[start + size - 1] - label[start] >= enough)
                    run = straddles * (total + 1) + later
                    if cost is None or run <= cost:
                        cost, chosen = run, size
                if cost is not None:
                    costs[start], sizes[start] = cost, chosen
            after = costs
            choices.insert(0, sizes)
        if 0 not in after:
            return None
        runs: list[Sequence[Core]] = []
        start = 0
        for sizes in choices:
            while sizes[start] == 0:
                start += 1
            runs.append(cores[start : start + sizes[start]])
            start += sizes[start]
        return runs


def _groups(cores: Iterable[Core], level: str) -> list[list[Core]]:
    """Return the cores by their group of that level, groups and cores in the order given."""
    groups: dict[int, list[Core]] = {}
    for core in cores:
        groups.setdefault(getattr(core, level), []).append(core)
    return list(groups.values())


def _labels(cores: Sequence[Core], level: str) -> list[int]:
    """Return a number for each core that grows by one wherever a new group of that level begins."""
    labels = [0]
    groups = [getattr(core, level) for core in cores]
    for place in range(1, len(groups)):
        labels.append(labels[-1] + (groups[place - 1] != groups[place]))
    return labels


def _larger_groups_first(cores: Sequence[Core], levels: Sequence[str]) -> list[Core]:
    """Return the cores with the groups of each level sorted by what they hold, so that their numbers do not count."""
    if not levels:
        return list(cores)
    groups = [_larger_groups_first(group, levels[1:]) for group in _groups(cores, levels[0])]
    groups.sort(key=lambda group: [[-len(part) for part in _groups(group, level)] for level in levels])
    return [core for group in groups for core in group]
