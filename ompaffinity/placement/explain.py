"""Why no rank gets a CPU, and the messages of a plan.

Each reason and each message names the option or the action that changes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.messages import (
    EFFICIENCY_CORES_USED,
    GPU_NODES_UNUSED,
    HELPER_CPUS_SHARED,
    MEMORYLESS_NODE,
    NO_NUMA_INFORMATION,
    NODES_UNUSED,
    NOTE,
    OUTSIDE_BINDING,
    OVERSUBSCRIBED,
    QUOTA_BELOW_CPUS,
    RANKS_EXCEED_NODES,
    RANKS_SHARE_CORES,
    RESERVE_IMPOSSIBLE,
    UNEVEN_RANKS,
    WARNING,
    Message,
    counted,
    plural,
)
from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.model import LeftOut
from ompaffinity.placement.reasons import DETAILS, REASONS
from ompaffinity.placement.reserve import wanted_reserve
from ompaffinity.topology.kinds import PERFORMANCE
from ompaffinity.topology.model import UNKNOWN, UNKNOWN_ARCHITECTURE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ompaffinity.placement.model import Assignment, Pool, RankPlacement
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
        return _about_siblings(topology, request)
    if reason == "unused-node":
        nodes = {core.node for pool in assignment.pools for core in pool.cores}
        return UNUSED_BY_GPUS if request.for_gpus else _about_unused_nodes(len(nodes), request.ranks)
    if reason == "unbound" and request.for_gpus:
        return "no GPU rank could be bound; the warnings give the reasons"
    if reason == "not-allowed" and request.avoid:
        return _about_held(request, assignment.held, cpus)
    return DETAILS[reason]


def _about_siblings(topology: Topology, request: PlacementRequest) -> str:
    count = rule_for(topology.architecture, request.threads_per_core).threads_per_core
    name = "one thread" if count == 1 else f"{count} threads"
    where = "" if topology.architecture == UNKNOWN_ARCHITECTURE else f" on {topology.architecture}"
    inside = " (their rank's other threads may run there)" if request.for_gpus else ""
    return f"{name} per core{where}{inside}; --threads-per-core all uses them"


def _about_held(request: PlacementRequest, held: Mapping[int, str], cpus: Sequence[int]) -> str:
    by_plan = {plan.name: [cpu for cpu in cpus if held.get(cpu) == plan.name] for plan in request.avoid}
    parts = [f"the plan {name} holds {format_id_list(taken)} (--avoid)" for name, taken in by_plan.items() if taken]
    others = [cpu for cpu in cpus if cpu not in held]
    if others:
        parts.append(f"{format_id_list(others)} {DETAILS['not-allowed']}")
    return "; ".join(parts)


def plan_messages(
    topology: Topology, request: PlacementRequest, assignment: Assignment, ranks: tuple[RankPlacement, ...]
) -> list[Message]:
    """Return the messages of a plan, in a fixed order."""
    messages = [*_about_machine(topology, request)]
    if request.for_gpus:
        messages += _about_gpu_ranks(topology, request, assignment, ranks)
    elif request.bind != "none":
        if request.cpu_lists is None:
            messages += _about_nodes(topology, assignment.pools, ranks)
            messages += _about_kinds(topology, request, ranks)
            messages += _about_sharing(assignment, ranks)
            messages += _about_reserve(topology, request, assignment, ranks)
        messages += _about_helpers(ranks)
        messages += _about_memory(topology, ranks)
        messages += _about_quota(topology, ranks)
    return messages


def _about_gpu_ranks(
    topology: Topology, request: PlacementRequest, assignment: Assignment, ranks: tuple[RankPlacement, ...]
) -> Iterator[Message]:
    yield from _about_gpu_nodes(assignment.pools, ranks)
    yield from _about_kinds(topology, request, ranks)
    bound = [rank for rank in ranks if rank.bound]
    if bound and request.cpu_lists is None and not request.share:
        yield from _about_reserve(topology, request, assignment, bound)
    if request.numa_bind_cpus is None or request.numa_bind_nodes is None:
        yield from _about_memory(topology, ranks)
    yield from _about_quota(topology, ranks)


def _about_machine(topology: Topology, request: PlacementRequest) -> Iterator[Message]:
    if not topology.nodes:
        requested = request.memory_policy not in ("auto", "none")
        yield NO_NUMA_INFORMATION(level=WARNING if requested else NOTE)
    online = {cpu.id for cpu in topology.cpus if cpu.online}
    affinity = topology.limits.affinity
    if affinity is not None and online - set(affinity):
        yield OUTSIDE_BINDING(cpus=format_id_list(affinity), online=format_id_list(online))


def _about_nodes(topology: Topology, pools: Sequence[Pool], ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    if all(pool.node != UNKNOWN for pool in pools):
        nodes = {core.node for pool in pools for core in pool.cores}
        used = {topology.cpu(cpu).numa_node for rank in ranks for cpu in rank.cpus}
        if len(ranks) > len(nodes):
            yield RANKS_EXCEED_NODES(ranks=len(ranks), nodes=counted(len(nodes), "NUMA node"))
        if used < nodes:
            reason = _about_unused_nodes(len(nodes), len(ranks))
            yield NODES_UNUSED(unused=len(nodes) - len(used), nodes=len(nodes), reason=reason)
    sizes = sorted({len(rank.cpus) for rank in ranks})
    if len(sizes) > 1:
        yield UNEVEN_RANKS(smallest=sizes[0], largest=sizes[-1], cause="")


def _about_gpu_nodes(pools: Sequence[Pool], ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    used = {cpu for rank in ranks for cpu in (*rank.cpus, *rank.helper_cpus)}
    unused = [pool for pool in pools if not any(cpu in used for core in pool.cores for cpu in core.cpus)]
    if unused and used:
        nodes = format_id_list(pool.node for pool in unused)
        yield GPU_NODES_UNUSED(nodes=f"{plural('node', len(unused))} {nodes}", reason=UNUSED_BY_GPUS)


def _about_unused_nodes(nodes: int, ranks: int) -> str:
    if ranks < nodes:
        return f"more nodes than ranks; {nodes} ranks (--tp, --pp, --dp) would use them all, or --span machine"
    return "too few CPUs there for a rank as large as the others"


def _about_kinds(topology: Topology, request: PlacementRequest, ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    slow = [cpu for rank in ranks for cpu in rank.cpus if topology.cpu(cpu).kind not in (None, PERFORMANCE)]
    if slow and request.kinds == PERFORMANCE:
        yield EFFICIENCY_CORES_USED(cpus=format_id_list(slow))


def _about_sharing(assignment: Assignment, ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    pools = assignment.pools
    cpus = sum(len(core.cpus) for pool in pools for core in pool.cores)
    if len(ranks) > cpus:
        yield OVERSUBSCRIBED(ranks=len(ranks), cpus=counted(cpus, "CPU"))
    elif assignment.split_siblings:
        cores = sum(len({core.cpus for core in pool.cores}) for pool in pools)
        yield RANKS_SHARE_CORES(ranks=len(ranks), cpus=cores)


def _about_reserve(
    topology: Topology, request: PlacementRequest, assignment: Assignment, ranks: Sequence[RankPlacement]
) -> Iterator[Message]:
    reserve = wanted_reserve(request, rule_for(topology.architecture, request.threads_per_core))
    wanted = reserve.per_rank * len(ranks) + reserve.total
    cores_of = {cpu: core for pool in assignment.pools for core in pool.cores for cpu in core.cpus}
    taken = len({cores_of[cpu] for rank in ranks for cpu in rank.helper_cpus})
    if taken < wanted:
        requested = request.reserve is not None or request.reserve_per_rank is not None or request.kv_transfer
        unit = plural("CPU" if assignment.split_siblings else "core", wanted)
        level = WARNING if requested else NOTE
        yield RESERVE_IMPOSSIBLE(level=level, reserved=taken, wanted=wanted, unit=unit)


def _about_helpers(ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    taken = {cpu for rank in ranks for cpu in (*rank.cpus, *rank.helper_cpus)}
    without = [rank.rank for rank in ranks if not rank.helper_cpus and taken.issuperset(rank.affinity)]
    if without:
        yield HELPER_CPUS_SHARED(ranks=f"{plural('rank', len(without))} {format_id_list(without)}")


def _about_memory(topology: Topology, ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    homeless = sorted(
        {
            home
            for rank in ranks
            for home in (topology.cpu(cpu).numa_node for cpu in rank.cpus)
            if home != UNKNOWN and home not in rank.nodes
        }
    )
    if homeless:
        given = sorted({node for rank in ranks for node in rank.nodes})
        nodes = f"{plural('node', len(homeless))} {format_id_list(homeless)}"
        if given:
            yield MEMORYLESS_NODE(nodes=nodes, consequence=f"their ranks use node {format_id_list(given)}")
        else:
            consequence = "no allowed node has memory, so no memory policy is set"
            yield MEMORYLESS_NODE(level=WARNING, nodes=nodes, consequence=consequence)


def _about_quota(topology: Topology, ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    quota = topology.limits.cpu_quota
    if quota is None:
        return
    usable = len(topology.allowed_cpus)
    if quota < usable:
        threads = sum(len(rank.cpus) for rank in ranks)
        yield QUOTA_BELOW_CPUS(quota=f"{quota:g}", cpus=usable, threads=counted(threads, "OpenMP thread"))
