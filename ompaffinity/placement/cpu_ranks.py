"""The cores of CPU ranks: divided among them, those that the user lists, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import PlacementError
from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.model import Assignment, Share
from ompaffinity.placement.pools import EFFICIENCY_CORE, single_core, single_cpu_pools, unusable_cpus, usable_pools
from ompaffinity.placement.reasons import DETAILS
from ompaffinity.placement.reserve import reserve_cores, wanted_reserve
from ompaffinity.placement.split import split_cores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.model import Pool
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def assign_cpu_ranks(topology: Topology, request: PlacementRequest, held: Mapping[int, str]) -> Assignment:
    """Return the cores of each rank of a checked request without GPUs; `held` are the CPUs of other plans.

    Raises:
        PlacementError: there are fewer usable CPUs than ranks.
    """
    unusable = unusable_cpus(topology, request, held)
    if request.bind == "none":
        return Assignment((None,) * request.ranks, unusable, held)
    if request.cpu_lists is not None:
        # Each CPU is a core of its own, in the order written; nothing is reserved.
        lists = [[single_core(topology.cpu(cpu)) for cpu in cpus] for cpus in request.cpu_lists]
        return Assignment(tuple(Share(tuple(cores)) for cores in lists), unusable, held)
    return _divided(topology, request, unusable, held)


def _divided(
    topology: Topology, request: PlacementRequest, unusable: dict[int, str], held: Mapping[int, str]
) -> Assignment:
    """Divide the usable cores among the ranks."""
    rule = rule_for(topology.architecture, request.threads_per_core)
    pools = usable_pools(topology, unusable, rule, span=request.span, ranks=request.ranks)
    if request.ranks > _count(pools) and EFFICIENCY_CORE in unusable.values():
        # A slow core of its own is better than half a fast one.
        unusable = {cpu: reason for cpu, reason in unusable.items() if reason != EFFICIENCY_CORE}
        pools = usable_pools(topology, unusable, rule, span=request.span, ranks=request.ranks)
    split_siblings = request.ranks > _count(pools)
    if split_siblings:
        _check_cpu_count(request, pools, unusable)
        unusable = unusable | dict.fromkeys(_unwanted_siblings(pools, request.ranks), "smt-sibling")
        pools = single_cpu_pools(topology, {cpu.id for cpu in topology.cpus} - unusable.keys())
    return Assignment(_shares(topology, request, rule, pools), unusable, held, pools, split_siblings)


def _count(pools: Iterable[Pool]) -> int:
    return sum(len(pool.cores) for pool in pools)


def _check_cpu_count(request: PlacementRequest, pools: Iterable[Pool], unusable: Mapping[int, str]) -> None:
    """Refuse more ranks than usable CPUs, unless they may share these.

    Raises:
        PlacementError: there are too few CPUs.
    """
    usable = sum(len(core.cpus) for pool in pools for core in pool.cores)
    if request.ranks > usable and not (usable and request.oversubscribe):
        raise PlacementError(_too_many_ranks(request, usable, unusable))


def _too_many_ranks(request: PlacementRequest, usable: int, unusable: Mapping[int, str]) -> str:
    if usable:
        return (
            f"{request.ranks} ranks were requested, but only {usable} CPUs may be used; request at most {usable}"
            " with --tp, --pp and --dp, widen the CPUs that this process may use, or let ranks share CPUs"
            " (--oversubscribe)"
        )
    if request.avoid:
        names = ", ".join(plan.name for plan in request.avoid)
        return f"no CPU may be used beside what --avoid {names} holds"
    reasons = list(unusable.values())
    counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in DETAILS if reason in reasons)
    remedy = "; --cpus LIST uses isolated ones that it names" if "isolated" in reasons else ""
    return f"no CPU may be used ({counts}){remedy}"


def _unwanted_siblings(pools: Iterable[Pool], ranks: int) -> set[int]:
    """Return the siblings that stay unused: those that get no thread by the architecture, if the others suffice."""
    cores = [core for pool in pools for core in pool.cores]
    wanted = {cpu for core in cores for cpu in core.threads}
    return {cpu for core in cores for cpu in core.cpus} - wanted if ranks <= len(wanted) else set()


def _shares(
    topology: Topology, request: PlacementRequest, rule: ArchitectureRule, pools: tuple[Pool, ...]
) -> tuple[Share, ...]:
    """Return the cores of each rank; with more ranks than CPUs (--oversubscribe) neighbours share a CPU."""
    cores = [core for pool in pools for core in pool.cores]
    if request.ranks > len(cores):
        return tuple(Share((cores[rank * len(cores) // request.ranks],)) for rank in range(request.ranks))
    spread = request.distribute == "spread"
    distance = None if topology.equally_far else topology.distance
    split = split_cores(pools, request.ranks, distance, spread=spread, group=request.group)
    return tuple(reserve_cores(split, wanted_reserve(request, rule)))
