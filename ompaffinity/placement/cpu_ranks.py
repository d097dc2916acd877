"""The cores of CPU ranks: divided among them, those that the user lists, or none."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ompaffinity.errors import PlacementError
from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.memory import allowed_memory_nodes
from ompaffinity.placement.model import Assignment, Pool, Share, Split
from ompaffinity.placement.node_groups import NodeGrouper
from ompaffinity.placement.pools import (
    EFFICIENCY_CORE,
    has_node_pools,
    single_core,
    single_cpu_pools,
    unusable_cpus,
    usable_pools,
)
from ompaffinity.placement.reasons import DETAILS
from ompaffinity.placement.request import AUTO
from ompaffinity.placement.reserve import reserve_cores, wanted_reserve
from ompaffinity.placement.split import choose_pools, largest_smallest, split_cores
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.node_groups import Group
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
    if request.ranks > _count(pools):
        cores = [core for pool in pools for core in pool.cores]
        shares = tuple(Share((cores[rank * len(cores) // request.ranks],)) for rank in range(request.ranks))
    else:
        shares = tuple(reserve_cores(_split(topology, request, rule, pools), wanted_reserve(request, rule)))
    return Assignment(shares, unusable, held, pools, split_siblings)


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


def _split(topology: Topology, request: PlacementRequest, rule: ArchitectureRule, pools: Sequence[Pool]) -> Split:
    """Return the cores of each rank: of a group of whole nodes, or of a part of one node."""
    distance = None if topology.equally_far else topology.distance
    spread = request.distribute == "spread"
    if request.span in (AUTO, "node"):
        pools = _preferred(topology, request, pools)
    if request.span == AUTO and has_node_pools(topology):
        grouper = NodeGrouper(
            pools,
            request.ranks,
            # Spread asks for several packages, and a tensor-parallel group would stay in one.
            1 if spread else request.group,
            _most_cores(topology, request, rule),
            distance,
            partial(_choose_groups, distance=distance, spread=spread),
        )
        groups = grouper.groups()
        if groups is not None:
            shares = tuple(tuple(core for pool in group for core in pool.cores) for group in groups)
            return Split(shares, ((),) * len(shares))
    return split_cores(pools, request.ranks, distance, spread=spread, group=request.group)


def _preferred(topology: Topology, request: PlacementRequest, pools: Sequence[Pool]) -> Sequence[Pool]:
    """Return the nodes that count: those with usable memory, where there are no more ranks than such nodes.

    With more ranks, CPUs on no node count only where they make the smallest rank larger.
    """
    on_nodes = [pool for pool in pools if pool.node != UNKNOWN]
    usable = {topology.home_node(node) for node in allowed_memory_nodes(topology, request.nodes)}
    with_memory = [pool for pool in on_nodes if pool.node in usable]
    if request.ranks <= len(with_memory):
        return with_memory
    sizes, all_sizes = ([len(pool.cores) for pool in found] for found in (on_nodes, pools))
    is_enough = largest_smallest(sizes, request.ranks) >= largest_smallest(all_sizes, request.ranks)
    return on_nodes if on_nodes and is_enough else pools


def _most_cores(topology: Topology, request: PlacementRequest, rule: ArchitectureRule) -> int | None:
    """Return how many cores of a rank can run threads at once under the CPU quota; None without a quota."""
    quota = topology.limits.cpu_quota
    if quota is None:
        return None
    return -(-int(quota // request.ranks) // rule.threads_per_core)


def _choose_groups(
    groups: list[Group], count: int, *, distance: Callable[[int, int], int] | None, spread: bool
) -> list[Group]:
    """Return so many of these groups of nodes: those with the most cores, close or spread."""
    joined = {
        pool.node: pool
        for pool in (Pool(group[0].node, tuple(core for pool in group for core in pool.cores)) for group in groups)
    }
    chosen = choose_pools([*joined.values()], count, distance, spread=spread)
    by_node = {group[0].node: group for group in groups}
    return [by_node[pool.node] for pool in chosen]
