"""The memory of a rank: its nodes, the policy, and its share in bytes.

Ranks that use a node or a control group share it evenly, so all budgets together never exceed it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ompaffinity.errors import NoMemoryNodeError
from ompaffinity.placement.request import AUTO
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import MemoryNodeInfo, Topology

WEIGHTED = "weighted-interleave"


def nearest_memory_node(topology: Topology, cpus: Iterable[int], within: tuple[int, ...] | None = None) -> int:
    """Return the allowed node with memory (of the nodes `within`, if given) that is nearest to `cpus`.

    Distance is the sum of the ACPI SLIT distances (10 = local, unitless) from each CPU's
    node; equal distances go to the lowest node id. A node whose memory is unknown counts as
    having it; a GPU's memory does not count.

    Raises:
        NoMemoryNodeError: no allowed node has memory.
    """
    nodes = usable_memory_nodes(topology, within)
    homes = [topology.home(cpu) for cpu in cpus]
    return min(nodes, key=lambda node: (sum(topology.distance(home, node) for home in homes), node))


def usable_memory_nodes(topology: Topology, within: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the allowed nodes (of the nodes `within`, if given) that have memory, ascending.

    Raises:
        NoMemoryNodeError: there is none.
    """
    nodes = allowed_memory_nodes(topology, within)
    if not nodes:
        raise NoMemoryNodeError("no NUMA node that this process may use has memory")
    return nodes


def allowed_memory_nodes(topology: Topology, within: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the allowed nodes (of the nodes `within`, if given) that have memory, ascending; they may be none."""
    return tuple(
        node.id
        for node in topology.nodes
        if node.allowed and _may_have_memory(node) and (within is None or node.id in within)
    )


def _may_have_memory(node: MemoryNodeInfo) -> bool:
    return node.has_memory is not False and not node.device_memory


def memory_nodes(
    topology: Topology, ranks: Sequence[Iterable[int] | None], usable: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Return the memory nodes of each rank on these CPUs: of each of its nodes the node itself, or else the nearest.

    Nodes that are one count together. Of nodes that are equally near, the one that the fewest ranks use comes first.
    `usable` are the nodes to choose from. Where the node of no CPU of a rank is known: all of these. Empty for a rank
    of None, and on a machine without NUMA information.
    """
    homes = [{topology.home(cpu) for cpu in cpus} if cpus is not None else set() for cpus in ranks]
    with_memory = {topology.home_node(node) for node in usable}
    users = Counter(home for found in homes for home in found if home in with_memory)
    given = []
    for found in homes:
        known = found - {UNKNOWN}
        chosen = known & with_memory
        for home in sorted(known - with_memory) if usable else ():
            nearest = min(with_memory, key=lambda node: (topology.distance(home, node), users[node], node))
            users[nearest] += 1
            chosen.add(nearest)
        nodes = (node for node in usable if topology.home_node(node) in chosen)
        given.append(tuple(nodes) if known or not found else usable)
    return given if topology.nodes else [() for _ in ranks]


def memory_policy(topology: Topology, request: PlacementRequest, nodes: tuple[int, ...]) -> str:
    """Return the policy of a rank with these memory nodes: a value of `MEMORY_POLICIES` other than auto."""
    if request.memory_policy != AUTO:
        return request.memory_policy if nodes else "none"
    if not nodes or not has_several_memory_nodes(topology):
        return "none"
    if len({topology.home_node(node) for node in nodes}) == 1:
        return "bind"
    weights = {topology.node(node).interleave_weight for node in nodes}
    return WEIGHTED if len(weights) > 1 and UNKNOWN not in weights else "interleave"


def has_several_memory_nodes(topology: Topology) -> bool:
    """Return whether a memory policy makes a difference; nodes that are one count once."""
    return len({topology.home_node(node.id) for node in topology.nodes if _may_have_memory(node)}) > 1


def with_sharing(ranks: tuple[RankPlacement, ...]) -> tuple[RankPlacement, ...]:
    """Return the placements of all local ranks with the number of ranks that use each of their nodes."""
    users = Counter(node for rank in ranks for node in rank.nodes)
    return tuple(
        rank._replace(node_ranks=tuple(users[node] for node in rank.nodes), local_world_size=len(ranks))
        for rank in ranks
    )


def node_shares(placement: RankPlacement, nodes: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many ranks share each of these nodes; all local ranks where this is unknown."""
    known = dict(zip(placement.nodes, placement.node_ranks))
    return tuple(known.get(node, placement.local_world_size) for node in nodes)


def share_of(placement: RankPlacement, by_node: Mapping[int, int], limit: int | None) -> int | None:
    """Return this rank's part of {node: bytes} and of a limit on all local ranks, in bytes.

    A rank without nodes (unbound, or no NUMA information) has its part of all of them. None where the bytes
    of a node are not known (`UNKNOWN`) and there is no limit either.
    """
    nodes = placement.nodes or tuple(by_node)
    known = bool(nodes) and all(by_node.get(node, UNKNOWN) != UNKNOWN for node in nodes)
    parts = [sum(by_node[node] // ranks for node, ranks in zip(nodes, node_shares(placement, nodes)))] if known else []
    if limit is not None:
        parts.append(limit // placement.local_world_size)
    return min(parts, default=None)


def planned_budget(topology: Topology, placement: RankPlacement, utilization: float) -> int | None:
    """Return how many bytes a rank may use on this machine, None where its memory is unknown."""
    totals = {node.id: node.total_memory for node in topology.nodes if node.allowed and _may_have_memory(node)}
    if not topology.nodes:
        totals = {UNKNOWN: topology.total_memory}
    share = share_of(placement, totals, topology.limits.memory_limit_bytes)
    return None if share is None else int(share * utilization)
