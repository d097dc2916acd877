"""The cores kept from the OpenMP threads, for the scheduler and the other threads of each rank."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

from ompaffinity.placement.model import Reserve, Share
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.model import Core, Split
    from ompaffinity.placement.request import PlacementRequest


def wanted_reserve(request: PlacementRequest, rule: ArchitectureRule) -> Reserve:
    """Return how many cores should be kept back."""
    per_rank, total = int(rule.reserve_per_rank), int(not rule.reserve_per_rank)
    if request.reserve is not None:
        per_rank, total = 0, request.reserve
    elif request.reserve_per_rank is not None:
        per_rank, total = request.reserve_per_rank, 0
    return Reserve(per_rank + request.kv_transfer, total)


def reserve_cores(split: Split, wanted: Reserve) -> list[Share]:
    """Keep cores back from each rank, and a total from the rank with the most left, the last among equals, one by one.

    Idle cores of its node go first (for a total: to the rank there that has the fewest cores); then the rank's own
    highest. A rank always keeps one core; fewer are taken where nothing else is left.
    """
    left = [len(cores) for cores in split.shares]
    given: list[list[Core]] = [[] for _ in split.shares]
    pools: dict[tuple[Core, ...], list[int]] = {}
    for rank, idle in enumerate(split.idle):
        pools.setdefault(idle, []).append(rank)
    idle_cores = {idle: _IdleCores(idle, ranks, split.shares) for idle, ranks in pools.items()}
    smallest_first = sorted(range(len(left)), key=lambda rank: (left[rank], -rank))
    for _ in range(wanted.per_rank):
        before = list(left), sum(map(len, given))
        for rank in smallest_first:
            core = idle_cores[split.idle[rank]].take_for(rank)
            if core is not None:
                given[rank].append(core)
            elif left[rank] > 1:
                left[rank] -= 1
        if before == (left, sum(map(len, given))):
            break
    _take_total(split, wanted.total, left, given, idle_cores)
    return [Share(cores[:keep], (*cores[keep:], *extra)) for cores, keep, extra in zip(split.shares, left, given)]


def _take_total(
    split: Split,
    missing: int,
    left: list[int],
    given: list[list[Core]],
    idle_cores: dict[tuple[Core, ...], _IdleCores],
) -> None:
    """Take so many cores from the largest ranks, one by one."""
    largest = [(-size, -rank) for rank, size in enumerate(left)]
    heapify(largest)
    while missing > 0 and largest:
        _, negative = heappop(largest)
        taken = idle_cores[split.idle[-negative]].take()
        if taken is not None:
            receiver, core = taken
            given[receiver].append(core)
        elif left[-negative] > 1:
            left[-negative] -= 1
        else:
            continue
        missing -= 1
        heappush(largest, (-left[-negative], negative))


class _IdleCores:
    """The idle cores of one pool by the node that they are on, and its ranks there, the smallest in front.

    Without NUMA information only the cores under one L3 are known to be on one node. A core that would
    make the ranks of the pool uneven stays idle.
    """

    def __init__(self, idle: tuple[Core, ...], ranks: list[int], shares: tuple[tuple[Core, ...], ...]) -> None:
        self._idle: dict[tuple[int, int], list[Core]] = {}
        for core in idle:
            self._idle.setdefault(_home(core), []).append(core)
        self._size = {rank: len(shares[rank]) for rank in ranks}
        self._caches = {rank: {core.l3 for core in shares[rank]} for rank in ranks}
        self._homes = {rank: sorted({_home(core) for core in shares[rank]} & self._idle.keys()) for rank in ranks}
        self._ranks: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for rank in ranks:
            for home in self._homes[rank]:
                self._ranks.setdefault(home, []).append((len(shares[rank]), -rank))
        for there in self._ranks.values():
            heapify(there)
        self._apart = any(len(there) < len(ranks) for there in self._ranks.values())

    def take(self) -> tuple[int, Core] | None:
        """Return (rank, core): the rank with the fewest cores, the last among equals, and an idle core near it."""
        homes = [home for home, cores in self._idle.items() if cores and home in self._ranks]
        if not homes:
            return None
        home = min(homes, key=self._smallest)
        rank = -self._smallest(home)[1]
        core = self._take(rank, home)
        return None if core is None else (rank, core)

    def take_for(self, rank: int) -> Core | None:
        """Return an idle core near this rank, None for none."""
        home = next((home for home in self._homes[rank] if self._idle.get(home)), None)
        return None if home is None else self._take(rank, home)

    def _take(self, rank: int, home: tuple[int, int]) -> Core | None:
        if self._apart and self._size[rank] > min(self._size.values()) + 1:
            return None
        self._size[rank] += 1
        cores = self._idle[home]
        core = next((core for core in reversed(cores) if core.l3 in self._caches[rank]), cores[-1])
        cores.remove(core)
        return core

    def _smallest(self, home: tuple[int, int]) -> tuple[int, int]:
        ranks = self._ranks[home]
        while ranks[0][0] < self._size[-ranks[0][1]]:
            heapreplace(ranks, (self._size[-ranks[0][1]], ranks[0][1]))
        return ranks[0]


def _home(core: Core) -> tuple[int, int]:
    return (core.node, UNKNOWN) if core.node != UNKNOWN else (UNKNOWN, core.l3)
