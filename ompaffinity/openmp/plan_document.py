"""The ``ompaffinity.plan/1`` document: a plan with the OpenMP variables of each rank."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.openmp.variables import rank_environment
from ompaffinity.placement.document import PLACEMENT_VARIABLE, placement_document

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.placement.model import Plan, RankPlacement


def plan_document(plan: Plan, rank: int | None = None) -> dict[str, Any]:
    """Return the plan as plain values, ready for JSON; with `rank`, of the ranks only this one."""
    return {
        "schema": "ompaffinity.plan/1",
        "architecture": plan.architecture,
        "machine": plan.machine,
        "runtime": plan.runtime,
        "granularity": plan.granularity,
        "ranks": [rank_document(plan, placement) for placement in plan.ranks if rank is None or placement.rank == rank],
        "reserved": format_id_list(plan.reserved),
        "left_out": [
            {"cpus": format_id_list(group.cpus), "reason": group.reason, "detail": group.detail}
            for group in plan.left_out
        ],
        "avoided": [{"name": held.name, "pid": held.pid, "cpus": format_id_list(held.cpus)} for held in plan.avoided],
        "warnings": [message._asdict() for message in plan.messages],
    }


def worker_environment(
    plan: Plan, placement: RankPlacement, inherited: Mapping[str, str] | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return (variables to set, names to remove) of a worker: the runtime's and OMPAFFINITY_PLACEMENT.

    Smaller numbers of threads in the environment that it would inherit are kept.
    """
    environment, unset = rank_environment(
        placement,
        runtime=plan.runtime,
        granularity=plan.granularity,
        wait_policy=plan.wait_policy,
        inherited=inherited,
    )
    compact = json.dumps(placement_document(placement), separators=(",", ":"))
    return environment | {PLACEMENT_VARIABLE: compact}, unset


def rank_document(plan: Plan, placement: RankPlacement) -> dict[str, Any]:
    """Return one rank of a plan as plain values: its placement, the variables to set and those to unset."""
    environment, unset = rank_environment(
        placement, runtime=plan.runtime, granularity=plan.granularity, wait_policy=plan.wait_policy
    )
    return placement_document(placement) | {"environment": environment, "unset": list(unset)}
