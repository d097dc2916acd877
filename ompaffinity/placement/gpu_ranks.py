"""The cores of GPU ranks: each rank those next to its GPU, which the GPUs there share exclusively.

Whole cores, cut along L3 caches first, as for CPU ranks. A rank whose GPU is next to nothing that is known, or next to
CPUs that this process may not use, stays unbound; the others do not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import PlacementError
from ompaffinity.ids import format_id_list
from ompaffinity.messages import DEVICE_NODE_UNKNOWN, Message
from ompaffinity.placement.explain import DETAILS, REASONS
from ompaffinity.placement.model import GPUShares, Reserve, Share, Split
from ompaffinity.placement.pools import single_core, unusable_cpus, usable_pools
from ompaffinity.placement.reserve import reserve_cores, wanted_reserve
from ompaffinity.placement.split import split_cores
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.model import Core, Pool
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def gpu_shares(topology: Topology, request: PlacementRequest, rule: ArchitectureRule) -> GPUShares:
    """Return the cores of each rank, next to its GPU or where the user says.

    Raises:
        PlacementError: a node or CPU that the user names cannot be had here, or nothing is known of the GPUs.
    """
    if request.numa_bind_nodes is not None:
        for gpu in request.gpu_of_rank:
            check_node(topology, gpu, request.numa_bind_nodes[gpu])
    if request.numa_bind_cpus is not None:
        return _listed(topology, request, request.numa_bind_cpus)
    return _shared_out(topology, request, rule)


def nodes_of_gpu(request: PlacementRequest, gpu: int) -> tuple[int, ...]:
    """Return the nodes that a GPU is next to: the user's own, else what was found; none where that is not known.

    Raises:
        PlacementError: nobody said, and nothing was asked.
    """
    if request.numa_bind_nodes is not None:
        return (request.numa_bind_nodes[gpu],)
    if request.gpu_homes is None:
        raise PlacementError(
            "nothing tells where the GPUs of this machine are; name them with --numa-bind-nodes, one NUMA node per GPU"
        )
    return request.gpu_homes[gpu].nodes


def check_node(topology: Topology, gpu: int, node: int) -> None:
    """Refuse a node that the user names for a GPU and that holds no CPU.

    Raises:
        PlacementError: it is such a node.
    """
    known = [found.id for found in topology.nodes if found.cpus]
    if node not in known:
        what = "has no CPU on line" if any(found.id == node for found in topology.nodes) else "does not exist here"
        raise PlacementError(
            f"--numa-bind-nodes names node {node} for GPU {gpu}, which {what};"
            f" the nodes with CPUs are {format_id_list(known) or 'none'}"
        )


def _listed(topology: Topology, request: PlacementRequest, lists: tuple[tuple[int, ...], ...]) -> GPUShares:
    """The user's own lists, in the order written; what this process may not use is left out of them."""
    used = {rank: lists[gpu] for rank, gpu in enumerate(request.gpu_of_rank)}
    present = {cpu.id for cpu in topology.cpus}
    strange = {cpu for cpus in used.values() for cpu in cpus} - present
    if strange:
        raise PlacementError(f"--numa-bind-cpus names CPU {format_id_list(strange)}, which this machine does not have")
    unusable = unusable_cpus(topology, request._replace(bind=tuple(used.values())))
    messages = [message for gpu in request.gpu_of_rank for message in _told(request, gpu)]
    shares: list[Share | None] = []
    for rank, cpus in used.items():
        left = [cpu for cpu in cpus if cpu not in unusable]
        if len(left) < len(cpus) and not _is_quiet(request, rank):
            lost = {unusable[cpu] for cpu in cpus if cpu in unusable}
            messages.append(_lacking(request, rank, f"CPU {format_id_list(cpus)}", left, lost))
        shares.append(Share(tuple(single_core(topology.cpu(cpu)) for cpu in left)) if left else None)
    return GPUShares(shares, [], unusable, messages)


def _shared_out(topology: Topology, request: PlacementRequest, rule: ArchitectureRule) -> GPUShares:
    unusable = unusable_cpus(topology, request)
    unusable = _with_slow_cores(topology, request, rule, unusable)
    pools = usable_pools(topology, unusable, rule)
    messages: list[Message] = []
    near: list[tuple[int, ...]] = []
    for rank, gpu in enumerate(request.gpu_of_rank):
        messages += _told(request, gpu)
        near.append(_usable_nodes(topology, request, rank, pools, unusable, messages))
    if request.span != "node":
        near = _with_lent_nodes(topology, near, pools, within_package=request.span == "package")
    shares: list[list[Core]] = [[] for _ in near]
    idle: list[tuple[Core, ...]] = [() for _ in near]
    for place, pool in enumerate(pools):
        ranks = [rank for rank, nodes in enumerate(near) if pool.node in nodes]
        if not ranks:
            continue
        if request.share:
            parts = [pool.cores for _ in ranks]
        else:
            if len(ranks) > len(pool.cores):
                later = {other.node for other in pools[place + 1 :]}
                ranks = _needy(ranks, shares, [later.intersection(nodes) for nodes in near], len(pool.cores))
            if len(ranks) <= len(pool.cores):
                split = split_cores([pool], len(ranks), None)
                parts = list(split.shares)
                for rank, left in zip(ranks, split.idle):
                    idle[rank] = left if near[rank][0] == pool.node else idle[rank]
            else:
                messages.append(_crowded(pool, ranks))
                pools[place] = _single_cpus(topology, pool, unusable, rule)
                parts = [_part(pools[place].cores, part, len(ranks)) for part in range(len(ranks))]
        for rank, cores in zip(ranks, parts):
            shares[rank] += cores
    bound = [rank for rank, cores in enumerate(shares) if cores]
    wanted = Reserve(0, 0) if request.share else wanted_reserve(request, rule)
    split = Split(tuple(tuple(shares[rank]) for rank in bound), tuple(idle[rank] for rank in bound))
    given: dict[int, Share] = dict(zip(bound, reserve_cores(split, wanted)))
    return GPUShares([given.get(rank) for rank in range(len(near))], pools, unusable, messages)


def _needy(ranks: list[int], shares: list[list[Core]], later: Sequence[Collection[int]], cores: int) -> list[int]:
    """Return who of these ranks gets some of a node that has fewer cores: as many as these, who has the least so far.

    Ranks that have nothing yet, and that no later node is near to, come first; if these alone are more, they share.
    """
    nothing_else = [rank for rank in ranks if not shares[rank] and not later[rank]]
    if len(nothing_else) > cores:
        return nothing_else
    return sorted(sorted(ranks, key=lambda rank: (rank not in nothing_else, len(shares[rank]), rank))[:cores])


def _with_slow_cores(
    topology: Topology, request: PlacementRequest, rule: ArchitectureRule, unusable: dict[int, str]
) -> dict[int, str]:
    """Return the unusable CPUs without the slow ones of nodes where there are fewer fast cores than ranks.

    A slow core of its own is better than half a fast one.
    """
    if "efficiency-core" not in unusable.values():
        return unusable
    cores = {pool.node: len(pool.cores) for pool in usable_pools(topology, unusable, rule)}
    wanted: dict[int, int] = {}
    for gpu in request.gpu_of_rank:
        for node in nodes_of_gpu(request, gpu) if request.gpu_homes or request.numa_bind_nodes else ():
            wanted[node] = wanted.get(node, 0) + 1
    # Where no node divides the machine, every rank wants the one pool.
    anywhere = cores.get(UNKNOWN, request.ranks if topology.nodes else 0) < request.ranks
    short = {node for node, ranks in wanted.items() if cores.get(node, 0) < ranks}
    return {
        cpu: reason
        for cpu, reason in unusable.items()
        if not (reason == "efficiency-core" and (anywhere or topology.cpu(cpu).numa_node in short))
    }


def _told(request: PlacementRequest, gpu: int) -> tuple[Message, ...]:
    homes = request.gpu_homes
    return homes[gpu].messages if homes is not None and gpu < len(homes) else ()


def _is_quiet(request: PlacementRequest, rank: int) -> bool:
    homes, gpu = request.gpu_homes, request.gpu_of_rank[rank]
    return homes is not None and gpu < len(homes) and homes[gpu].quiet


def _usable_nodes(
    topology: Topology,
    request: PlacementRequest,
    rank: int,
    pools: list[Pool],
    unusable: dict[int, str],
    messages: list[Message],
) -> tuple[int, ...]:
    """Return the nodes of a rank's GPU that have usable cores, as `pools` name them; what it lacks is told of."""
    gpu = request.gpu_of_rank[rank]
    nodes = nodes_of_gpu(request, gpu) if topology.nodes or request.numa_bind_nodes is not None else ()
    here = [pool.node for pool in pools]
    with_cpus = tuple(node.id for node in topology.nodes if node.cpus)
    if not nodes and len(with_cpus) == 1:
        nodes = with_cpus
    if here == [UNKNOWN]:
        # The machine says nothing of nodes that would divide it: every CPU is as near as any other.
        return (UNKNOWN,)
    usable = tuple(node for node in nodes if node in here)
    if usable or _is_quiet(request, rank):
        return usable
    if nodes or not with_cpus:
        where = [cpu.id for cpu in topology.cpus if cpu.numa_node in nodes or not with_cpus]
        lost = {unusable[cpu] for cpu in where if cpu in unusable}
        messages.append(_lacking(request, rank, f"node {format_id_list(nodes)}" if nodes else "this machine", [], lost))
    elif not any(message.code == "device-node-unknown" for message in _told(request, gpu)):
        messages.append(DEVICE_NODE_UNKNOWN(gpu=f"GPU {gpu}", reason="no source reports it"))
    return usable


def _lacking(request: PlacementRequest, rank: int, wanted: str, left: list[int], lost: set[str]) -> Message:
    """Return the warning that a rank gets nothing, or only a part, of what it should have; `lost` are the reasons."""
    consequence = f"it gets CPU {format_id_list(left)} only" if left else "it stays unbound"
    held = {"not-allowed": "other plans hold them (--avoid), or they are outside of the affinity mask or cpuset"}
    details = DETAILS | held if request.avoid else DETAILS
    why = "; ".join(f"{reason}: {details[reason]}" for reason in REASONS if reason in lost)
    part = "not all CPUs" if left else "no CPU"
    text = f"rank {rank} has GPU {request.gpu_of_rank[rank]}, next to {wanted}, of which {part} may be used ({why})"
    code = "outside-binding" if "not-allowed" in lost and not request.avoid else "device-cpus-unusable"
    return Message(code, "warning", f"{text}, so {consequence}")


def _crowded(pool: Pool, ranks: list[int]) -> Message:
    cpus = [cpu for core in pool.cores for cpu in core.cpus]
    what = "SMT siblings of one core go to different ranks" if len(ranks) <= len(cpus) else "ranks share CPUs"
    text = (
        f"ranks {format_id_list(ranks)} are next to {'one node' if pool.node == UNKNOWN else f'node {pool.node}'}, of"
        f" which CPU {format_id_list(cpus)} may be used: fewer cores than ranks, so {what}; use fewer ranks there, or a"
        " wider mask or cpuset"
    )
    return Message("ranks-share-cores", "warning", text)


def _with_lent_nodes(
    topology: Topology, near: list[tuple[int, ...]], pools: list[Pool], *, within_package: bool
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


def _single_cpus(topology: Topology, pool: Pool, unusable: dict[int, str], rule: ArchitectureRule) -> Pool:
    """Return the pool with every CPU as a core of its own."""
    members = {cpu for core in pool.cores for cpu in core.cpus}
    others = {cpu.id: "" for cpu in topology.cpus if cpu.id not in members}
    return usable_pools(topology, unusable | others, rule, split_siblings=True)[0]


def _part(cores: tuple[Core, ...], place: int, parts: int) -> tuple[Core, ...]:
    """Return one of so many parts, of at least one core: neighbours share one where there are more parts than cores."""
    start, end = place * len(cores) // parts, (place + 1) * len(cores) // parts
    return cores[start : max(end, start + 1)]
