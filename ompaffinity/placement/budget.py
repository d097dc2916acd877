"""How much memory a rank may use: its part of its nodes, and of what the control groups leave.

Ranks that use a node, or a control group, share it evenly, so that all budgets together never exceed it.
"""

from __future__ import annotations

from ompaffinity.topology.model import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ompaffinity.placement.plan import RankPlacement
    from ompaffinity.topology.model import Topology


def node_shares(placement: RankPlacement, nodes: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many ranks share each of these nodes; all local ranks where the placement does not say."""
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
    """Return how many bytes a rank may use on this machine, None where the machine does not say."""
    totals = {
        node.id: node.total_memory
        for node in topology.nodes
        if node.allowed and node.has_memory is not False and not node.device_memory
    }
    if not topology.nodes:
        totals = {0: topology.total_memory}
    share = share_of(placement, totals, topology.limits.memory_limit_bytes)
    return None if share is None else int(share * utilization)
