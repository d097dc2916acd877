"""The messages of a plan: each one names the option or the action that changes what it is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.messages import (
    CORE_TYPES,
    CPUS_ON_NO_NODE,
    GPU_NODES_UNUSED,
    HELPER_CPUS_SHARED,
    ISOLATED_CPUS_USED,
    ISOLATED_SIBLINGS,
    KEEPS_OFF_LIVE,
    MEMORYLESS_NODE,
    NO_NUMA_INFORMATION,
    NODES_UNUSED,
    NOTE,
    ONLY_SLOW_CORES,
    OUTSIDE_BINDING,
    OVERSUBSCRIBED,
    QUOTA_BELOW_CPUS,
    RANKS_EXCEED_NODES,
    RANKS_SHARE_CORES,
    RESERVE_IMPOSSIBLE,
    SIBLINGS_ON_TWO_NODES,
    SLOWER_CORES_USED,
    UNEVEN_RANKS,
    UNKNOWN_CORES,
    WARNING,
    Message,
    counted,
    plural,
)
from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.left_out import UNUSED_BY_GPUS, why_nodes_are_unused
from ompaffinity.placement.pools import core_choice
from ompaffinity.placement.request import AUTO
from ompaffinity.placement.reserve import wanted_reserve
from ompaffinity.topology.kinds import EFFICIENCY, LOW_POWER
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ompaffinity.placement.model import Assignment, Pool, RankPlacement
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology

MOST_SHOWN = 8
"""So many processes are named in a message."""


def plan_messages(
    topology: Topology, request: PlacementRequest, assignment: Assignment, ranks: tuple[RankPlacement, ...]
) -> list[Message]:
    """Return the messages of a plan, in a fixed order."""
    messages = [*_about_machine(topology, request)]
    if request.for_gpus:
        messages += _about_gpu_ranks(topology, request, assignment, ranks)
    elif request.bind != "none":
        if request.cpu_lists is None:
            messages += _about_nodes(topology, request, assignment.pools, ranks)
            messages += _about_core_types(topology, request, assignment, ranks)
            messages += _about_isolation(topology, ranks)
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
    if request.cpu_lists is None:
        yield from _about_core_types(topology, request, assignment, ranks)
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
    running = [held for held in request.avoid if held.pid is not None]
    if running:
        shown = ", ".join(f"{format_id_list(held.cpus)} of {held.name}" for held in running[:MOST_SHOWN])
        more = f", and of {len(running) - MOST_SHOWN} more" if len(running) > MOST_SHOWN else ""
        yield KEEPS_OFF_LIVE(holders=shown + more)
    unknown = [cpu.id for cpu in topology.cpus if cpu.allowed and cpu.physical_core == UNKNOWN]
    if unknown:
        yield UNKNOWN_CORES(cpus=format_id_list(unknown))


def _about_nodes(
    topology: Topology, request: PlacementRequest, pools: Sequence[Pool], ranks: tuple[RankPlacement, ...]
) -> Iterator[Message]:
    nodes = {core.node for pool in pools for core in pool.cores}
    if nodes != {UNKNOWN}:
        homeless = [cpu for pool in pools for core in pool.cores if core.node == UNKNOWN for cpu in core.cpus]
        if homeless:
            yield CPUS_ON_NO_NODE(cpus=format_id_list(homeless))
        nodes.discard(UNKNOWN)
        used = {topology.home(cpu) for rank in ranks for cpu in rank.cpus} - {UNKNOWN}
        if len(ranks) > len(nodes):
            yield RANKS_EXCEED_NODES(ranks=len(ranks), nodes=counted(len(nodes), "NUMA node"))
        if used < nodes:
            reason = why_nodes_are_unused(topology, request, nodes, nodes - used)
            yield NODES_UNUSED(unused=len(nodes) - len(used), nodes=len(nodes), reason=reason)
    used_cpus = {cpu for rank in ranks for cpu in (*rank.cpus, *rank.helper_cpus)}
    split = _cores_on_two_nodes(topology, used_cpus)
    if split:
        yield SIBLINGS_ON_TWO_NODES(cpus=format_id_list(split))
    sizes = sorted({len(rank.cpus) for rank in ranks})
    if len(sizes) > 1:
        yield UNEVEN_RANKS(smallest=sizes[0], largest=sizes[-1], cause="")


def _cores_on_two_nodes(topology: Topology, cpus: Collection[int]) -> list[int]:
    """Return those of these CPUs whose core is on several nodes and has several of them."""
    on_core: dict[int, list[int]] = {}
    for cpu in cpus:
        on_core.setdefault(topology.cpu(cpu).physical_core, []).append(cpu)
    on_core.pop(UNKNOWN, None)
    return sorted(cpu for found in on_core.values() if len(set(map(topology.home, found))) > 1 for cpu in found)


def _about_gpu_nodes(pools: Sequence[Pool], ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    used = {cpu for rank in ranks for cpu in (*rank.cpus, *rank.helper_cpus)}
    unused = [pool for pool in pools if not any(cpu in used for core in pool.cores for cpu in core.cpus)]
    if unused and used:
        nodes = format_id_list(pool.node for pool in unused)
        yield GPU_NODES_UNUSED(nodes=f"{plural('node', len(unused))} {nodes}", reason=UNUSED_BY_GPUS)


def _about_core_types(
    topology: Topology, request: PlacementRequest, assignment: Assignment, ranks: tuple[RankPlacement, ...]
) -> Iterator[Message]:
    choice = core_choice(topology, request, assignment.unusable)
    left_out = set(choice.left_out)
    slow = sorted(cpu for rank in ranks for cpu in (*rank.cpus, *rank.helper_cpus) if cpu in left_out)
    if slow:
        yield SLOWER_CORES_USED(cpus=format_id_list(slow), ranks=counted(len(ranks), "rank"))
    elif len(choice.classes) == 1 and choice.classes[0].name in (EFFICIENCY, LOW_POWER):
        yield ONLY_SLOW_CORES(name=choice.classes[0].name)
    elif request.core_type == AUTO and len(choice.classes) > 1:
        used = [one.name for one in choice.classes[: choice.used]]
        if left_out:
            remedy = "--core-type all uses the others too"
        else:
            remedy = "--core-type performance leaves the slower ones out"
        yield CORE_TYPES(figures=choice.figures(), used=" and ".join(dict.fromkeys(used)), remedy=remedy)


def _about_isolation(topology: Topology, ranks: tuple[RankPlacement, ...]) -> Iterator[Message]:
    """Report isolated CPUs that ranks have, and CPUs of ranks on a core with an isolated one."""
    used = {cpu for rank in ranks for cpu in (*rank.cpus, *rank.helper_cpus)}
    isolated = {cpu.id for cpu in topology.cpus if cpu.isolated}
    if used & isolated:
        yield ISOLATED_CPUS_USED(cpus=format_id_list(used & isolated))
    core_of = {cpu.id: cpu.physical_core for cpu in topology.cpus if cpu.physical_core != UNKNOWN}
    cores = {core_of[cpu] for cpu in isolated if cpu in core_of}
    beside = {cpu for cpu in used - isolated if core_of.get(cpu) in cores}
    if beside:
        yield ISOLATED_SIBLINGS(cpus=format_id_list(beside))


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
            for home in map(topology.home, rank.cpus)
            if home != UNKNOWN and home not in map(topology.home_node, rank.nodes)
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
        too_many = sum(rank.bound for rank in ranks) > quota
        consequence = ", more than run at once; use fewer ranks, or raise cpu.max (docker --cpus)" if too_many else ""
        yield QUOTA_BELOW_CPUS(
            level=WARNING if too_many else NOTE,
            quota=f"{quota:g}",
            cpus=usable,
            threads=counted(threads, "OpenMP thread"),
            consequence=consequence,
        )
