"""The ``ompaffinity.plan/1`` document: a plan with what each rank's OpenMP runtime hears."""

from __future__ import annotations

from ompaffinity.jsontext import to_json
from ompaffinity.openmp.environment import PLACEMENT_VARIABLE, rank_environment
from ompaffinity.topology.idlist import format_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.placement.cluster import ClusterPlan
    from ompaffinity.placement.plan import Plan, RankPlacement


def plan_document(plan: Plan, rank: int | None = None) -> dict[str, Any]:
    """Return the plan as plain values, ready for JSON; with `rank`, of the ranks only this one."""
    return {
        "schema": "ompaffinity.plan/1",
        "architecture": plan.architecture,
        "machine": plan.machine,
        "runtime": plan.runtime,
        "granularity": plan.granularity,
        "ranks": [
            _rank_document(plan, placement) for placement in plan.ranks if rank is None or placement.rank == rank
        ],
        "reserved": format_id_list(plan.reserved),
        "left_out": [
            {"cpus": format_id_list(group.cpus), "reason": group.reason, "detail": group.detail}
            for group in plan.left_out
        ],
        "warnings": [message._asdict() for message in plan.warnings],
    }


def cluster_document(plan: ClusterPlan, rank: int | None = None) -> dict[str, Any]:
    """Return the ``ompaffinity.cluster/1`` document of a cluster's plan; with `rank`, of the ranks only this one."""
    ranks = []
    for chosen in plan.ranks:
        if rank is None or chosen.rank == rank:
            host, node = plan.home(chosen.rank)
            told = {"node_id": node.node_id, "node": node.name, "slots": chosen.slots}
            ranks.append(_rank_document(host.plan, chosen.placement) | told)
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
        "warnings": [message._asdict() for message in plan.all_warnings],
    }


def placement_document(placement: RankPlacement) -> dict[str, Any]:
    """Return one rank's placement as plain values: what a worker finds in OMPAFFINITY_PLACEMENT."""
    return {
        "rank": placement.rank,
        "local_rank": placement.local_rank,
        "bound": placement.bound,
        "cpus": list(placement.cpus),
        "helper_cpus": list(placement.helper_cpus),
        "places": [format_id_list(place) for place in placement.places],
        "affinity": format_id_list(placement.affinity),
        "nodes": list(placement.nodes),
        "memory_policy": placement.memory_policy,
        "device": placement.device,
        "node_ranks": list(placement.node_ranks),
        "local_world_size": placement.local_world_size,
        "memory_budget_bytes": placement.memory_budget,
        "devices": list(placement.devices),
    }


def worker_environment(plan: Plan, placement: RankPlacement) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return (variables to set, names to remove) of a worker: the runtime's and OMPAFFINITY_PLACEMENT."""
    environment, unset = rank_environment(
        placement, runtime=plan.runtime, granularity=plan.granularity, wait_policy=plan.wait_policy
    )
    return environment | {PLACEMENT_VARIABLE: to_json(placement_document(placement))}, unset


def _rank_document(plan: Plan, placement: RankPlacement) -> dict[str, Any]:
    environment, unset = rank_environment(
        placement, runtime=plan.runtime, granularity=plan.granularity, wait_policy=plan.wait_policy
    )
    return placement_document(placement) | {"environment": environment, "unset": list(unset)}
