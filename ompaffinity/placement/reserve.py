"""Which cores are kept from the OpenMP threads, for the scheduler and the helper threads of each rank."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.cores import Core
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.placement.split import Split


class Share(NamedTuple):
    """The cores of one rank: those with OpenMP threads and those reserved from them, in core order."""

    compute: tuple[Core, ...]
    reserved: tuple[Core, ...] = ()


def wanted_reserve(request: PlacementRequest, rule: ArchitectureRule) -> int:
    """Return how many cores should be kept back in all."""
    if request.reserve is not None:
        total = request.reserve
    elif request.reserve_per_rank is not None:
        total = request.reserve_per_rank * request.ranks
    else:
        total = request.ranks if rule.reserve_per_rank else 1
    return total + (request.ranks if request.kv_transfer else 0)


def reserve_cores(split: Split, total: int) -> list[Share]:
    """Take `total` cores, one by one, from the rank with the most left, the last among equals.

    Idle cores of its node go first, to the rank there that has the fewest cores; then its own highest.
    A rank always keeps one core; fewer than `total` are taken where nothing else is left.
    """
    left = [len(cores) for cores in split.shares]
    given: list[list[Core]] = [[] for _ in split.shares]
    pools: dict[tuple[Core, ...], list[int]] = {}
    for rank, idle in enumerate(split.idle):
        if idle:
            pools.setdefault(idle, []).append(rank)
    idle_cores = {idle: _IdleCores(idle, ranks, split.shares) for idle, ranks in pools.items()}
    largest = [(-size, -rank) for rank, size in enumerate(left)]
    heapify(largest)
    while total > 0 and largest:
        _, negative = heappop(largest)
        idle = split.idle[-negative]
        taken = idle_cores[idle].take() if idle else None
        if taken is not None:
            receiver, core = taken
            given[receiver].append(core)
        elif left[-negative] > 1:
            left[-negative] -= 1
        else:
            continue
        total -= 1
        heappush(largest, (-left[-negative], negative))
    return [Share(cores[:keep], (*cores[keep:], *extra)) for cores, keep, extra in zip(split.shares, left, given)]


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
        self._ranks: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for rank in ranks:
            for home in {_home(core) for core in shares[rank]} & self._idle.keys():
                self._ranks.setdefault(home, []).append((len(shares[rank]), -rank))
        self._apart = any(len(there) < len(ranks) for there in self._ranks.values())

    def take(self) -> tuple[int, Core] | None:
        """Return (rank, core): the rank with the fewest cores, the last among equals, and an idle core near it."""
        for home in [home for home in self._idle if home not in self._ranks or not self._idle[home]]:
            del self._idle[home]
        if not self._idle:
            return None
        home = min(self._idle, key=self._smallest)
        size, negative = self._smallest(home)
        if self._apart and size > min(self._size.values()) + 1:
            return None
        self._size[-negative] = size + 1
        heapreplace(self._ranks[home], (size + 1, negative))
        cores = self._idle[home]
        core = next((core for core in reversed(cores) if core.l3 in self._caches[-negative]), cores[-1])
        cores.remove(core)
        return -negative, core

    def _smallest(self, home: tuple[int, int]) -> tuple[int, int]:
        ranks = self._ranks[home]
        heapify(ranks)
        while ranks[0][0] < self._size[-ranks[0][1]]:
            heapreplace(ranks, (self._size[-ranks[0][1]], ranks[0][1]))
        return ranks[0]


def _home(core: Core) -> tuple[int, int]:
    return (core.node, UNKNOWN) if core.node != UNKNOWN else (UNKNOWN, core.l3)
