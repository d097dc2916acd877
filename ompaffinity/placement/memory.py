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
    from collections.abc import Iterable, Mapping

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import MemoryNodeInfo, Topology


def nearest_memory_node(topology: Topology, cpus: Iterable[int], within: tuple[int, ...] | None = None) -> int:
    """Return the allowed node with memory (of the nodes `within`, if given) that is nearest to `cpus`.

    Distance is the sum of the ACPI SLIT distances (10 = local, unitless) from each CPU's
    node; equal distances go to the lowest node id. A node whose memory is unknown counts as
    having it; a GPU's memory does not count.

    Raises:
        NoMemoryNodeError: no allowed node has memory.
    """
    nodes = usable_memory_nodes(topology, within)
    homes = [topology.cpu(cpu).numa_node for cpu in cpus]
    return min(nodes, key=lambda node: (sum(topology.distance(home, node) for home in homes), node))


def usable_memory_nodes(topology: Topology, within: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the allowed nodes (of the nodes `within`, if given) that have memory, ascending.

    Raises:
        NoMemoryNodeError: there is none.
    """
    nodes = tuple(
        node.id
        for node in topology.nodes
        if node.allowed and _may_have_memory(node) and (within is None or node.id in within)
    )
    if not nodes:
        raise NoMemoryNodeError("no NUMA node that this process may use has memory")
    return nodes


def _may_have_memory(node: MemoryNodeInfo) -> bool:
    return node.has_memory is not False and not node.device_memory


def memory_nodes(topology: Topology, cpus: Iterable[int], usable: tuple[int, ...]) -> tuple[int, ...]:
    """Return the memory nodes for a rank on `cpus`: of each of its nodes the node itself, or else the nearest.

    `usable` are the nodes to choose from. Where the node of no CPU of the rank is known: all of these.
    Empty on a machine without NUMA information.
    """
    if not topology.nodes or not usable:
        return ()
    homes = {topology.cpu(cpu).numa_node for cpu in cpus}
    known = homes - {UNKNOWN}
    if not known:
        return usable if homes else ()
    return tuple(sorted({_nearest(topology, home, usable) for home in known}))


def _nearest(topology: Topology, home: int, usable: tuple[int, ...]) -> int:
    if home in usable:
        return home
    return min(usable, key=lambda node: (topology.distance(home, node), node))


def memory_policy(topology: Topology, request: PlacementRequest, nodes: tuple[int, ...]) -> str:
    """Return the policy of a rank with these memory nodes: bind, preferred, interleave or none."""
    if request.memory_policy != AUTO:
        return request.memory_policy if nodes else "none"
    if not nodes or not has_several_memory_nodes(topology):
        return "none"
    return "bind" if len(nodes) == 1 else "interleave"


def has_several_memory_nodes(topology: Topology) -> bool:
    """Return whether a memory policy makes a difference."""
    found = (node for node in topology.nodes if _may_have_memory(node))
    return next(found, None) is not None and next(found, None) is not None


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
        totals = {0: topology.total_memory}
    share = share_of(placement, totals, topology.limits.memory_limit_bytes)
    return None if share is None else int(share * utilization)
