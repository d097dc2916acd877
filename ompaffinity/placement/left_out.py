"""Why no rank gets a CPU: each reason with the option or the action that changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.memory import allowed_memory_nodes
from ompaffinity.placement.model import LeftOut
from ompaffinity.placement.reasons import DETAILS, REASONS
from ompaffinity.placement.request import AUTO
from ompaffinity.topology.model import UNKNOWN, UNKNOWN_ARCHITECTURE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ompaffinity.placement.model import Assignment, RankPlacement
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology

UNUSED_BY_GPUS = "no GPU of the ranks is next to them; --span package (or machine) lends them to the nearest ranks"


def left_out_cpus(
    topology: Topology, request: PlacementRequest, assignment: Assignment, ranks: Sequence[RankPlacement]
) -> tuple[LeftOut, ...]:
    """Return every present CPU that no rank has, grouped by reason."""
    placed = {cpu for rank in ranks for cpu in (*rank.cpus, *rank.helper_cpus)}
    reasons = _reasons(assignment, placed)
    # CPUs that the user lists for a rank are left out by a quota alone.
    otherwise = "quota" if placed else "unbound"
    groups: dict[str, list[int]] = {}
    for cpu in sorted({cpu.id for cpu in topology.cpus} - placed):
        groups.setdefault(reasons.get(cpu, otherwise), []).append(cpu)
    return tuple(
        LeftOut(tuple(groups[reason]), reason, _detail(reason, topology, request, assignment, groups[reason]))
        for reason in REASONS
        if reason in groups
    )


def _reasons(assignment: Assignment, placed: set[int]) -> dict[int, str]:
    """Return {cpu: reason} of the unusable CPUs, and of those in the pools unless every rank is unbound."""
    in_pools = _reasons_in_pools(assignment, placed) if placed else {}
    return in_pools | dict(assignment.unusable)


def _reasons_in_pools(assignment: Assignment, placed: set[int]) -> dict[int, str]:
    """Return {cpu: reason} of the usable CPUs, if no rank has them."""
    idle = assignment.idle
    reasons: dict[int, str] = {}
    for pool in assignment.pools:
        used = not placed.isdisjoint(cpu for core in pool.cores for cpu in core.cpus)
        for core in pool.cores:
            owned = not placed.isdisjoint(core.cpus)
            for cpu in core.cpus:
                if not used:
                    reasons[cpu] = "unused-node"
                elif core in idle:
                    reasons[cpu] = "remainder"
                elif owned and cpu not in core.threads:
                    reasons[cpu] = "smt-sibling"
                else:
                    reasons[cpu] = "quota"
    return reasons


def _detail(
    reason: str, topology: Topology, request: PlacementRequest, assignment: Assignment, cpus: Sequence[int]
) -> str:
    if reason == "smt-sibling":
        return _siblings(topology, request)
    if reason == "unused-node":
        if request.for_gpus:
            return UNUSED_BY_GPUS
        nodes = {core.node for pool in assignment.pools for core in pool.cores}
        unused = set(map(topology.home, cpus))
        return why_nodes_are_unused(topology, request, nodes, unused)
    if reason == "unbound" and request.for_gpus:
        return "no GPU rank could be bound; the warnings give the reasons"
    if reason == "not-allowed" and request.avoid:
        return _held(request, assignment.held, cpus)
    return DETAILS[reason]


def _siblings(topology: Topology, request: PlacementRequest) -> str:
    count = rule_for(topology.architecture, request.threads_per_core).threads_per_core
    name = "one thread" if count == 1 else f"{count} threads"
    where = "" if topology.architecture == UNKNOWN_ARCHITECTURE else f" on {topology.architecture}"
    inside = " (their rank's other threads may run there)" if request.for_gpus else ""
    return f"{name} per core{where}{inside}; --threads-per-core all uses them"


def _held(request: PlacementRequest, held: Mapping[int, str], cpus: Sequence[int]) -> str:
    parts = []
    for plan in request.avoid:
        taken = [cpu for cpu in cpus if held.get(cpu) == plan.name]
        if taken:
            holder = f"the plan {plan.name} holds" if plan.pid is None else f"{plan.name} is bound to"
            parts.append(f"{holder} {format_id_list(taken)} (--avoid)")
    others = [cpu for cpu in cpus if cpu not in held]
    if others:
        parts.append(f"{format_id_list(others)} {DETAILS['not-allowed']}")
    return "; ".join(parts)


def why_nodes_are_unused(
    topology: Topology, request: PlacementRequest, nodes: Collection[int], unused: Collection[int]
) -> str:
    """Return why these of the nodes with usable cores are unused, and the option that uses them."""
    if set(unused) == {UNKNOWN}:
        return "on no NUMA node; --span machine uses their cores"
    with_memory = {topology.home_node(node) for node in allowed_memory_nodes(topology, request.nodes)}
    if with_memory and with_memory.isdisjoint(unused):
        return "this process may use no memory there; --span machine uses their cores"
    if request.ranks >= len(nodes):
        return "too few CPUs there for a rank as large as the others"
    if request.span == AUTO:
        reason = "each rank gets equally many whole nodes of one package"
        if request.group > 1:
            reason += ", and a tensor-parallel group stays in one package at a small cost"
    else:
        reason = "more nodes than ranks"
    return f"{reason}; {len(nodes)} ranks (--tp, --pp, --dp) would use them all, or --span machine"
