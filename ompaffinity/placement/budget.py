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


def share_of(placement: RankPlacement, by_node: Mapping[int, int], limit: int | None) -> int | None:
    """Return this rank's part of {node: bytes} and of a limit on all local ranks, in bytes.

    A rank without nodes (unbound, or no NUMA information) has its part of all of them. None where the bytes
    of a node are not known (`UNKNOWN`) and there is no limit either.
    """
    nodes = placement.nodes or tuple(by_node)
    ranks = placement.node_ranks if placement.nodes else (placement.local_world_size,) * len(nodes)
    known = bool(nodes) and all(by_node.get(node, UNKNOWN) != UNKNOWN for node in nodes)
    parts = [sum(by_node[node] // sharing for node, sharing in zip(nodes, ranks))] if known else []
    if limit is not None:
        parts.append(limit // placement.local_world_size)
    return min(parts, default=None)


def planned_budget(topology: Topology, placement: RankPlacement, utilization: float) -> int | None:
    """Return how many bytes a rank may use on this machine, None where the machine does not say."""
    totals = {node.id: node.total_memory for node in topology.nodes if node.allowed and node.has_memory is not False}
    share = share_of(placement, totals, topology.limits.memory_limit_bytes)
    return None if share is None else int(share * utilization)
