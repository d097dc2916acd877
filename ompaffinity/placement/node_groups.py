"""Groups of whole nodes of one package, for fewer ranks than nodes (``--span auto``).

Each rank gets one group of k nodes with all their usable cores, for the k whose smallest rank has the most cores; of
equal ones the larger k, because memory bandwidth grows with the nodes.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar

from ompaffinity.placement.pools import near_order
from ompaffinity.placement.split import largest_fitting, largest_smallest
from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ompaffinity.placement.model import Pool

EXACT_NODES = 10
"""Up to so many nodes of different sizes in a package, every grouping is weighed."""
TOLERANCE_PERCENT, TOLERATED_FROM = 5, 10
"""A tensor-parallel group stays in one package if that costs its smallest rank at most this much of its cores, and
nothing where a rank has fewer cores than the second number."""

Group = tuple["Pool", ...]
T = TypeVar("T")


class _Groups(NamedTuple):
    """One choice: the groups of the ranks in order, the cores of the smallest, and those of all."""

    groups: tuple[Group, ...]
    smallest: int
    total: int


class NodeGrouper:
    """Chooses groups of whole nodes for `ranks` ranks; each `tensor_size` ranks in turn are a tensor-parallel group.

    `most_cores` is what a rank can use at most (a CPU quota). `distance` of two nodes is None where all are equally
    far. `choose(groups, count)` returns the groups to use where there are more than ranks.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        ranks: int,
        tensor_size: int,
        most_cores: int | None,
        distance: Callable[[int, int], int] | None,
        choose: Callable[[list[Group], int], list[Group]],
    ) -> None:
        self._ranks, self._tensor_size, self._most_cores = ranks, tensor_size, most_cores
        self._distance, self._choose = distance, choose
        self._packages = _packages(pools)
        self._sizes = [len(pool.cores) for pool in pools]

    def groups(self) -> tuple[Group, ...] | None:
        """Return the nodes of each rank; None where no such groups exist, or sharing nodes gives more cores."""
        free = self._best(1)
        if free is None or self._capped(largest_smallest(self._sizes, self._ranks)) > self._capped(free.smallest):
            return None
        together = self._best(self._tensor_size) if self._tensor_size > 1 else None
        return free.groups if together is None or not self._is_worth(free, together) else together.groups

    def _is_worth(self, free: _Groups, together: _Groups) -> bool:
        """Return whether tensor-parallel groups stay in one package."""
        best, smallest = self._capped(free.smallest), self._capped(together.smallest)
        if smallest == best:
            return together.total >= free.total
        return best >= TOLERATED_FROM and best - smallest <= -(-best * TOLERANCE_PERCENT // 100)

    def _capped(self, cores: int) -> int:
        return cores if self._most_cores is None else min(cores, self._most_cores)

    def _best(self, together: int) -> _Groups | None:
        """Return the best groups of which each `together` in turn are in one package, None where there are none."""
        found: tuple[int, int, int] | None = None
        for count in range(1, max(map(len, self._packages)) + 1):
            smallest = self._largest_smallest(count, together)
            value = self._capped(smallest)
            # A rank that cannot use more cores needs no more nodes.
            enough = value == self._most_cores
            if smallest and (found is None or value > found[0] or (value == found[0] and not enough)):
                found = (value, count, smallest)
        return None if found is None else self._formed(found[1], found[2], together)

    def _largest_smallest(self, count: int, together: int) -> int:
        """Return the most cores that every rank can have in groups of `count` nodes, 0 if there are too few groups."""
        most = count * max(self._sizes)
        return largest_fitting(most, lambda smallest: self._room(count, smallest, together) >= self._ranks)

    def _room(self, count: int, smallest: int, together: int) -> int:
        rooms = (len(_grouped(_sizes(package), count, smallest)) for package in self._packages)
        return sum(room // together * together for room in rooms)

    def _formed(self, count: int, smallest: int, together: int) -> _Groups:
        by_package = [self._groups_of(package, count, smallest) for package in self._packages]
        if together == 1:
            groups = self._ordered(self._choose([group for groups in by_package for group in groups], self._ranks))
        else:
            slots = [slot for groups in by_package for slot in _in_turn(self._ordered(groups), together)]
            slots.sort(key=lambda slot: (-min(map(_cores, slot)), -sum(map(_cores, slot)), _first_node(slot[0])))
            chosen = sorted(slots[: self._ranks // together], key=lambda slot: _first_node(slot[0]))
            groups = [group for slot in chosen for group in slot]
        return _Groups(tuple(groups), min(map(_cores, groups)), sum(map(_cores, groups)))

    def _ordered(self, groups: list[Group]) -> list[Group]:
        """Return groups so that each tensor-parallel group in turn gets near ones."""
        if self._distance is None or not 1 < self._tensor_size < len(groups):
            return groups
        nodes = [_first_node(group) for group in groups]
        order = near_order(nodes, [1] * len(groups), self._tensor_size, self._distance)
        return [groups[place] for place in order]

    def _groups_of(self, package: Sequence[Pool], count: int, smallest: int) -> list[Group]:
        """Return the most groups of `count` nodes with at least `smallest` cores of a package, near nodes together."""
        places = list(range(len(package)))
        if self._distance is not None:
            places = near_order([pool.node for pool in package], [1] * len(package), count, self._distance)
        near = [tuple(package[place] for place in sorted(group)) for group in _in_turn(places, count)]
        near = [group for group in near if _cores(group) >= smallest]
        best = _grouped(_sizes(package), count, smallest)
        if len(near) == len(best):
            return near
        return [tuple(package[place] for place in places) for places in best]


def _packages(pools: Sequence[Pool]) -> list[list[Pool]]:
    """Return the nodes by package; one that covers several, or whose package is unknown, stands alone."""
    packages: dict[tuple[int, int], list[Pool]] = {}
    for pool in pools:
        covered = {core.package for core in pool.cores}
        package = covered.pop() if len(covered) == 1 and pool.node != UNKNOWN else UNKNOWN
        packages.setdefault((package, pool.node if package == UNKNOWN else UNKNOWN), []).append(pool)
    return list(packages.values())


def _in_turn(items: Iterable[T], count: int) -> Iterator[tuple[T, ...]]:
    """Yield each `count` items in turn, without the rest."""
    return zip(*[iter(items)] * count)


def _sizes(package: Sequence[Pool]) -> tuple[int, ...]:
    return tuple(len(pool.cores) for pool in package)


def _cores(group: Group) -> int:
    return sum(len(pool.cores) for pool in group)


def _first_node(group: Group) -> int:
    return min(pool.node for pool in group)


@cache
def _grouped(sizes: tuple[int, ...], count: int, smallest: int) -> tuple[tuple[int, ...], ...]:
    """Return the most disjoint groups of `count` places whose sizes add up to at least `smallest`."""
    if len(set(sizes)) == 1:
        return tuple(_in_turn(range(len(sizes)), count)) if count * max(sizes) >= smallest else ()
    places = tuple(sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)))
    if len(sizes) > EXACT_NODES:
        return tuple(_grown(places, sizes, count, smallest))
    return _exact(places, sizes, count, smallest)


def _exact(places: tuple[int, ...], sizes: tuple[int, ...], count: int, smallest: int) -> tuple[tuple[int, ...], ...]:
    known: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {}

    def best(left: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        if len(left) < count:
            return ()
        if left not in known:
            first, rest = left[0], left[1:]
            most = min(len(left) // count, sum(sizes[place] for place in left) // smallest)
            found = best(rest) if most else ()
            for others in combinations(rest, count - 1):
                if len(found) >= most:
                    break
                group = (first, *others)
                if sum(sizes[place] for place in group) >= smallest:
                    after = best(tuple(place for place in rest if place not in others))
                    if len(after) + 1 > len(found):
                        found = (tuple(sorted(group)), *after)
            known[left] = found
        return known[left]

    return best(places)


def _grown(places: Sequence[int], sizes: Sequence[int], count: int, smallest: int) -> list[tuple[int, ...]]:
    """Grow each group from the largest place left, with the smallest ones that still make it large enough."""
    left, groups = list(places), []
    while len(left) >= count:
        group = [left.pop(0)]
        for missing in range(count - 1, 0, -1):
            needed = smallest - sum(sizes[place] for place in group)
            # The largest of the others fill what is left after this one.
            rest = [sum(sizes[place] for place in left[: missing - 1])] * len(left)
            fits = [place for place, more in zip(left, rest) if sizes[place] + more >= needed]
            chosen = (fits or left)[-1]
            left.remove(chosen)
            group.append(chosen)
        if sum(sizes[place] for place in group) < smallest:
            break
        groups.append(tuple(sorted(group)))
    return groups
