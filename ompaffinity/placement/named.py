"""CPUs, nodes and plans that were asked for by name: refused where this machine does not have them."""

from __future__ import annotations

from ompaffinity.errors import PlacementError
from ompaffinity.placement.cores import held_cpus
from ompaffinity.topology.idlist import format_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def check_named(topology: Topology, request: PlacementRequest) -> None:
    """Refuse CPUs and nodes that were asked for by number and are not to be had."""
    if request.nodes is not None:
        strange = set(request.nodes) - {node.id for node in topology.nodes}
        if strange:
            known = format_id_list(node.id for node in topology.nodes) or "none"
            raise PlacementError(
                f"--nodes (or CPU_VISIBLE_MEMORY_NODES) names node {format_id_list(strange)},"
                f" which this machine does not have; its nodes are {known}"
            )
    if request.cpus is not None:
        check_allowed("--cpus", topology, request, request.cpus)


def check_avoided(topology: Topology, request: PlacementRequest) -> None:
    """Refuse a plan to keep off that cannot be of this machine."""
    present = {cpu.id for cpu in topology.cpus}
    for plan in request.avoid:
        strange = (set(plan.cpus) | set(plan.known)) - present
        if strange:
            raise PlacementError(
                f"--avoid {plan.name} holds CPU {format_id_list(strange)}, which this machine does not have;"
                " is it a plan for another machine?"
            )
        unknown = present - set(plan.known)
        if plan.known and unknown:
            raise PlacementError(
                f"--avoid {plan.name} says nothing of CPU {format_id_list(unknown)};"
                " it must be the whole plan (no --rank) for this machine"
            )


def check_allowed(option: str, topology: Topology, request: PlacementRequest, cpus: tuple[int, ...]) -> None:
    """Refuse CPUs that another plan holds, or that this process may not use."""
    held = held_cpus(topology, request)
    taken = [cpu for cpu in cpus if cpu in held]
    if taken:
        raise PlacementError(
            f"{option} names CPU {format_id_list(taken)}, whose core the plan {held[taken[0]]} holds (--avoid)"
        )
    allowed = topology.allowed_cpus
    strange = set(cpus) - set(allowed)
    if strange:
        raise PlacementError(
            f"{option} names CPU {format_id_list(strange)}, which this process may not use;"
            f" it may use {format_id_list(allowed) or 'none'}"
        )
