"""Ray (the extra ``[ray]``): plan over a cluster's nodes, start bound actors, and prove that they are.

plan = ompaffinity.ray.plan_cluster(tensor_parallel_size=2, data_parallel_size=4)
actors = [Worker.options(**ompaffinity.ray.actor_options(plan, rank)).remote() for rank in range(8)]
assert ompaffinity.ray.verify_cluster(actors, plan).holds
"""

from __future__ import annotations

from ompaffinity.integrations.ray.actors import actor_options, bind_actor, plan_cluster
from ompaffinity.integrations.ray.cluster import ClusterNode, ClusterPlan, ClusterRank, make_cluster_plan
from ompaffinity.integrations.ray.verify import verify_cluster
from ompaffinity.integrations.ray.watch import ClusterWatch, NodeStatus, watch_cluster

__all__ = [
    "ClusterNode",
    "ClusterPlan",
    "ClusterRank",
    "ClusterWatch",
    "NodeStatus",
    "actor_options",
    "bind_actor",
    "make_cluster_plan",
    "plan_cluster",
    "verify_cluster",
    "watch_cluster",
]
