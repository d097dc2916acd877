"""The ``ompaffinity.cluster/1`` document: a plan over the nodes of a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.openmp.plan_document import plan_document, rank_document

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.integrations.ray.cluster import ClusterPlan


def cluster_document(plan: ClusterPlan, rank: int | None = None) -> dict[str, Any]:
    """Return the ``ompaffinity.cluster/1`` document of a cluster's plan, with all ranks or with `rank` only."""
    ranks = []
    for chosen in plan.ranks:
        if rank is None or chosen.rank == rank:
            host, node = plan.home(chosen.rank)
            node_keys = {"node_id": node.node_id, "node": node.name, "slots": chosen.slots}
            ranks.append(rank_document(host.plan, chosen.placement) | node_keys)
    return {
        "schema": "ompaffinity.cluster/1",
        "world_size": len(plan.ranks),
        "ranks": ranks,
        "machines": [
            {
                "nodes": [{"node_id": node.node_id, "node": node.name, "slots": node.slots} for node in host.nodes],
                "plan": plan_document(host.plan),
            }
            for host in plan.hosts
        ],
        "warnings": [message._asdict() for message in plan.all_messages],
    }
