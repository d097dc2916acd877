"""The cores of GPU ranks: each rank those next to its GPU, which the GPUs there share exclusively.

Whole cores, cut along L3 caches first, as for CPU ranks. A rank whose GPU is next to nothing that is known, or next to
CPUs that this process may not use, stays unbound; the others are bound all the same.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ompaffinity.errors import PlacementError
from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.gpu_messages import crowded, lacking_cpus, lacking_listed, messages_of_gpu
from ompaffinity.placement.model import Assignment, Reserve, Share, Split
from ompaffinity.placement.pools import (
    EFFICIENCY_CORE,
    has_node_pools,
    single_core,
    single_cpu_pools,
    unusable_cpus,
    usable_pools,
)
from ompaffinity.placement.reserve import reserve_cores, wanted_reserve
from ompaffinity.placement.split import split_cores
from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from ompaffinity.messages import Message
    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.model import Core, Pool
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def assign_gpu_ranks(topology: Topology, request: PlacementRequest, held: Mapping[int, str]) -> Assignment:
    """Return the cores of each rank of a checked request for GPU ranks: next to its GPU, or those that the user lists.

    `held` are the CPUs of other plans.

    Raises:
        PlacementError: nothing is known of the GPUs.
    """
    unusable = unusable_cpus(topology, request, held)
    if request.cpu_lists is not None:
        return _listed(topology, request, request.cpu_lists, unusable, held)
    return _next_to_gpus(topology, request, unusable, held)


def nodes_of_gpu(request: PlacementRequest, gpu: int) -> tuple[int, ...]:
    """Return the nodes that a GPU is next to: the user's own, else the detected ones; none where these are unknown.

    Raises:
        PlacementError: the user names none, and none were looked up.
    """
    if request.numa_bind_nodes is not None:
        return (request.numa_bind_nodes[gpu],)
    if request.gpu_homes is None:
        raise PlacementError(
            "the NUMA nodes of this machine's GPUs are unknown; name them with --numa-bind-nodes, one node per GPU"
        )
    return request.gpu_homes[gpu].nodes


def _listed(
    topology: Topology,
    request: PlacementRequest,
    lists: Sequence[tuple[int, ...]],
    unusable: Mapping[int, str],
    held: Mapping[int, str],
) -> Assignment:
    """Return the user's own lists, in the order written, without the CPUs that this process may not use."""
    usable = [tuple(cpu for cpu in cpus if cpu not in unusable) for cpus in lists]
    messages = [message for gpu in request.gpu_of_rank for message in messages_of_gpu(request, gpu)]
    for rank, (cpus, left) in enumerate(zip(lists, usable)):
        messages += lacking_listed(request, rank, cpus, left, unusable)
    cores = [tuple(single_core(topology.cpu(cpu)) for cpu in cpus) for cpus in usable]
    shares = tuple(Share(of_rank) if of_rank else None for of_rank in cores)
    return Assignment(shares, unusable, held, messages=_distinct(messages))


def _distinct(messages: Iterable[Message]) -> tuple[Message, ...]:
    return tuple(dict.fromkeys(messages))


def _next_to_gpus(
    topology: Topology, request: PlacementRequest, unusable: dict[int, str], held: Mapping[int, str]
) -> Assignment:
    """Divide the usable cores of each node among the ranks whose GPUs are next to it."""
    rule = rule_for(topology.architecture, request.threads_per_core)
    unusable = _with_slow_cores(topology, request, rule, unusable)
    pools = usable_pools(topology, unusable, rule)
    messages: list[Message] = []
    near = []
    for rank, gpu in enumerate(request.gpu_of_rank):
        wanted = _wanted_nodes(topology, request, gpu)
        near.append(_usable_nodes(wanted, pools))
        messages += messages_of_gpu(request, gpu)
        if not near[rank]:
            messages += lacking_cpus(topology, request, rank, wanted, unusable)
    if request.span in ("package", "machine"):
        near = _with_lent_nodes(topology, near, pools, within_package=request.span == "package")
    divisions = _divide_pools(topology, request, pools, near)
    messages += [crowded(division.pool, division.ranks) for division in divisions if division.crowded]
    return Assignment(
        shares=_with_reserve(request, rule, near, divisions),
        unusable=unusable,
        held=held,
        pools=tuple(division.pool for division in divisions),
        messages=_distinct(messages),
    )


def _with_slow_cores(
    topology: Topology, request: PlacementRequest, rule: ArchitectureRule, unusable: dict[int, str]
) -> dict[int, str]:
    """Return the unusable CPUs without the slow ones of nodes where there are fewer fast cores than ranks.

    A slow core of its own is better than half a fast one.
    """
    if EFFICIENCY_CORE not in unusable.values():
        return unusable
    cores = Counter({pool.node: len(pool.cores) for pool in usable_pools(topology, unusable, rule)})
    wanted: Counter[int] = Counter()
    for gpu in request.gpu_of_rank:
        nodes = nodes_of_gpu(request, gpu) if request.gpu_homes or request.numa_bind_nodes else ()
        wanted.update(map(topology.home_node, nodes))
    # Where no node divides the machine, every rank wants the one pool.
    anywhere = not has_node_pools(topology) and sum(cores.values()) < request.ranks
    short = {node for node, ranks in wanted.items() if cores[node] < ranks}
    return {
        cpu: reason
        for cpu, reason in unusable.items()
        if not (reason == EFFICIENCY_CORE and (anywhere or topology.home(cpu) in short))
    }


def _wanted_nodes(topology: Topology, request: PlacementRequest, gpu: int) -> tuple[int, ...]:
    """Return the nodes that a GPU is next to; where that is not known, the only node with CPUs."""
    known = nodes_of_gpu(request, gpu) if topology.nodes or request.numa_bind_nodes is not None else ()
    with_cpus = tuple(node.id for node in topology.nodes if node.cpus)
    homes = tuple(dict.fromkeys(map(topology.home_node, known or with_cpus)))
    return homes if known or len(homes) == 1 else ()


def _usable_nodes(wanted: tuple[int, ...], pools: Sequence[Pool]) -> tuple[int, ...]:
    """Return those of the wanted nodes that have usable cores, as `pools` name them."""
    usable = [pool.node for pool in pools]
    if usable == [UNKNOWN]:
        # No node divides the machine: every CPU is as near as any other.
        return (UNKNOWN,)
    return tuple(node for node in wanted if node in usable)


def _with_lent_nodes(
    topology: Topology, near: list[tuple[int, ...]], pools: Sequence[Pool], *, within_package: bool
) -> list[tuple[int, ...]]:
    """Return each rank's nodes with those that no GPU is next to, each lent to the nearest one that has GPU ranks."""
    package = {pool.node: pool.cores[0].package for pool in pools}
    users: dict[int, list[int]] = {}
    for rank, nodes in enumerate(near):
        for node in nodes:
            users.setdefault(node, []).append(rank)
    cores = {pool.node: len(pool.cores) for pool in pools}
    room = {node: cores[node] / len(ranks) for node, ranks in users.items()}
    lent: dict[int, list[int]] = {}
    for pool in pools:
        if pool.node in users:
            continue
        takers = [node for node in users if not within_package or package[node] == package[pool.node] != UNKNOWN]
        if takers:
            # Where several are as near, the one whose ranks have the fewest cores so far.
            taker = min(takers, key=lambda node: (topology.distance(node, pool.node), room[node], node))
            room[taker] += len(pool.cores) / len(users[taker])
            for rank in users[taker]:
                lent.setdefault(rank, []).append(pool.node)
    return [(*nodes, *lent.get(rank, ())) for rank, nodes in enumerate(near)]


class _Division(NamedTuple):
    """How one pool is divided: `parts[i]` are the cores of `ranks[i]`, `idle[i]` those left idle with it.

    `crowded`: there are more ranks than cores.
    """

    pool: Pool
    ranks: Sequence[int] = ()
    parts: Sequence[tuple[Core, ...]] = ()
    idle: Sequence[tuple[Core, ...]] = ()
    crowded: bool = False


def _divide_pools(
    topology: Topology, request: PlacementRequest, pools: Sequence[Pool], near: Sequence[tuple[int, ...]]
) -> list[_Division]:
    """Divide each pool among the ranks that are near it; a pool that none is near to has no parts."""
    sizes = [0] * len(near)
    divisions = []
    for place, pool in enumerate(pools):
        ranks = [rank for rank, nodes in enumerate(near) if pool.node in nodes]
        if not request.share:
            later = {other.node for other in pools[place + 1 :]}
            ranks = _needy(ranks, sizes, [later.intersection(nodes) for nodes in near], len(pool.cores))
        division = _divide(topology, pool, ranks, share=request.share)
        for rank, cores in zip(ranks, division.parts):
            sizes[rank] += len(cores)
        divisions.append(division)
    return divisions


def _needy(ranks: list[int], sizes: list[int], later: Sequence[Collection[int]], cores: int) -> list[int]:
    """Return which of these ranks get some of a node: as many as it has cores, those with the fewest cores so far.

    Ranks that have nothing yet, and that no later node is near to, come first; if these alone are more, they share.
    """
    nothing_else = [rank for rank in ranks if not sizes[rank] and not later[rank]]
    first = sorted(ranks, key=lambda rank: (rank not in nothing_else, sizes[rank], rank))
    return sorted(first[: max(cores, len(nothing_else))])


def _divide(topology: Topology, pool: Pool, ranks: list[int], *, share: bool) -> _Division:
    if not ranks:
        return _Division(pool)
    if share:
        return _Division(pool, ranks, [pool.cores] * len(ranks))
    if len(ranks) <= len(pool.cores):
        split = split_cores([pool], len(ranks), None)
        return _Division(pool, ranks, split.shares, split.idle)
    (single,) = single_cpu_pools(topology, {cpu for core in pool.cores for cpu in core.cpus})
    parts = [_part(single.cores, place, len(ranks)) for place in range(len(ranks))]
    return _Division(single, ranks, parts, crowded=True)


def _part(cores: tuple[Core, ...], place: int, parts: int) -> tuple[Core, ...]:
    """Return one of so many parts, of at least one core: neighbours share one where there are more parts than cores."""
    start, end = place * len(cores) // parts, (place + 1) * len(cores) // parts
    return cores[start : max(end, start + 1)]


def _with_reserve(
    request: PlacementRequest,
    rule: ArchitectureRule,
    near: Sequence[tuple[int, ...]],
    divisions: Iterable[_Division],
) -> tuple[Share | None, ...]:
    """Return the share of each rank: its parts of all pools, with the cores reserved from them; None without any.

    Of the idle cores those of a rank's first node are its own to reserve.
    """
    cores: dict[int, tuple[Core, ...]] = {}
    idle: dict[int, tuple[Core, ...]] = {}
    for division in divisions:
        for rank, part in zip(division.ranks, division.parts):
            cores[rank] = (*cores.get(rank, ()), *part)
        idle.update(
            (rank, left) for rank, left in zip(division.ranks, division.idle) if near[rank][0] == division.pool.node
        )
    bound = sorted(cores)
    split = Split(tuple(cores[rank] for rank in bound), tuple(idle.get(rank, ()) for rank in bound))
    wanted = Reserve(0, 0) if request.share else wanted_reserve(request, rule)
    given: dict[int, Share] = dict(zip(bound, reserve_cores(split, wanted)))
    return tuple(given.get(rank) for rank in range(len(near)))
