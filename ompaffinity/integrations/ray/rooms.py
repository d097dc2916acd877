"""How many ranks each machine of a cluster gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Sequence


def ranks_by_room(
    rooms: Sequence[tuple[int, int]], ranks: int, group: int = 1, *, oversubscribe: bool = False
) -> tuple[list[int], bool]:
    """Return how many ranks each machine gets, and whether the groups hold together.

    `rooms` are (usable cores, usable CPUs) of each machine. Groups of `group` ranks are dealt out whole, one by one,
    each to the machine where its ranks then have the most cores (the D'Hondt method), so that the smallest rank is
    as large as can be. Where the groups do not fit whole, single ranks are dealt; where there are more ranks than
    cores, they share these; only with `oversubscribe` are there more ranks than CPUs.

    Raises:
        PlacementError: there are more ranks than CPUs.
    """
    sizes = (group, 1) if group > 1 and ranks % group == 0 else (1,)
    cores, cpus = ([room[place] for room in rooms] for place in (0, 1))
    for room, most in ((cores, cores), (cpus, cpus), *(((cpus, None),) if oversubscribe and any(cpus) else ())):
        for size in sizes:
            counts = deal_out(room, most, ranks // size, size)
            if sum(counts) == ranks:
                return counts, size == group
    raise PlacementError(
        f"{ranks} ranks were requested, but the nodes have {sum(cpus)} usable CPUs in all; request at most"
        f" {sum(cpus)} with --tp, --pp and --dp, or let ranks share CPUs (--oversubscribe)"
    )


def deal_out(room: Sequence[float], most: Sequence[float] | None, groups: int, size: int) -> list[int]:
    """Deal out groups of `size` ranks, each to the machine where its ranks then have the most room.

    Return the ranks of each machine after the last group that fits: `most` are the ranks that it holds, None for any
    number.
    """
    counts = [0] * len(room)
    for _ in range(groups):
        free = [
            place for place in range(len(room)) if room[place] and (most is None or counts[place] + size <= most[place])
        ]
        if not free:
            break
        counts[max(free, key=lambda place: (room[place] / (counts[place] + size), -place))] += size
    return counts
