"""Plan again for ranks that run already, within the CPUs that are left: their teams keep the number of threads."""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING

from ompaffinity.errors import OMPAffinityError
from ompaffinity.placement.architecture import ALL
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.topology.model import Topology


def is_possible(placement: RankPlacement, available: Collection[int]) -> bool:
    """Return whether every thread of a rank still has a CPU of its place."""
    return all(not set(place).isdisjoint(available) for place in placement.places)


def planned_again(
    topology: Topology, placements: Sequence[RankPlacement], available: Collection[int]
) -> tuple[RankPlacement, ...]:
    """Return placements for the same ranks within the `available` CPUs, with as many threads as before.

    Helper CPUs are kept while each thread has a CPU of its own. The memory policy of a process cannot be set from
    outside, so its nodes stay. Where there can be no plan at all the ranks share all CPUs.
    """
    left = frozenset(available)
    cpus = tuple(cpu._replace(allowed=cpu.online and cpu.id in left, isolated=False) for cpu in topology.cpus)
    limits = topology.limits._replace(affinity=None, cpuset_cpus=None, cpu_quota=None)
    machine = topology._replace(cpus=cpus, limits=limits)
    helpers = int(any(placement.helper_cpus for placement in placements))
    for reserve, threads_per_core in ((helpers, None), (0, None), (0, ALL)):
        found = _planned(machine, len(placements), reserve, threads_per_core)
        if found and all(len(new.cpus) >= len(old.cpus) for new, old in zip(found, placements)):
            return tuple(_with_a_cpu_each(old, new) for old, new in zip(placements, found))
    found = _planned(machine, len(placements), 0, ALL)
    masks = [placement.affinity for placement in found] or [tuple(sorted(left))] * len(placements)
    return tuple(_floating(old, mask) for old, mask in zip(placements, masks))


def _planned(
    topology: Topology, ranks: int, reserve_per_rank: int, threads_per_core: int | None
) -> tuple[RankPlacement, ...]:
    request = PlacementRequest(
        tensor_parallel_size=ranks, reserve_per_rank=reserve_per_rank, threads_per_core=threads_per_core
    )
    try:
        return make_plan(topology, request).ranks
    except OMPAffinityError:
        return ()


def _with_a_cpu_each(old: RankPlacement, new: RankPlacement) -> RankPlacement:
    cpus = new.cpus[: len(old.cpus)]
    if len(old.places) > 1 and len(set(old.places)) == 1:
        # The plan lets its team float.
        floating = (new.affinity,) * len(old.places)
        return old._replace(cpus=cpus, helper_cpus=new.helper_cpus, places=floating, affinity=new.affinity)
    host = tuple(sorted({*new.affinity} - {*cpus[1:]}))
    places = (host, *((cpu,) for cpu in cpus[1:]))
    return old._replace(cpus=cpus, helper_cpus=new.helper_cpus, places=places, affinity=new.affinity)


def _floating(old: RankPlacement, affinity: tuple[int, ...]) -> RankPlacement:
    """Return a placement with more threads than CPUs: all of them float within the same CPUs."""
    threads = len(old.cpus)
    return old._replace(
        cpus=tuple(islice(cycle(affinity), threads)), helper_cpus=(), places=(affinity,) * threads, affinity=affinity
    )
