"""What is reported while GPU ranks get their cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.messages import (
    DEVICE_CPUS_OUTSIDE,
    DEVICE_CPUS_UNUSABLE,
    DEVICE_NODE_UNKNOWN,
    GPU_RANKS_SHARE_CORES,
    Message,
)
from ompaffinity.placement.reasons import DETAILS, REASONS
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ompaffinity.placement.model import Pool
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def messages_of_gpu(request: PlacementRequest, gpu: int) -> tuple[Message, ...]:
    """Return what was found about a GPU when its node was looked up."""
    homes = request.gpu_homes
    return homes[gpu].messages if homes is not None and gpu < len(homes) else ()


def _is_quiet(request: PlacementRequest, rank: int) -> bool:
    homes, gpu = request.gpu_homes, request.gpu_of_rank[rank]
    return homes is not None and gpu < len(homes) and homes[gpu].quiet


def lacking_listed(
    request: PlacementRequest, rank: int, listed: Sequence[int], left: Sequence[int], unusable: Mapping[int, str]
) -> list[Message]:
    """Return the warning that only some of the CPUs that the user lists for a rank, or none, may be used."""
    if len(left) == len(listed) or _is_quiet(request, rank):
        return []
    reasons = {unusable[cpu] for cpu in listed if cpu in unusable}
    return [_lacking(request, rank, f"CPU {format_id_list(listed)}", left, reasons)]


def lacking_cpus(
    topology: Topology, request: PlacementRequest, rank: int, nodes: Collection[int], unusable: Mapping[int, str]
) -> list[Message]:
    """Return the warning that a rank gets no CPU: its GPU's `nodes` have no usable one, or are not known."""
    if _is_quiet(request, rank):
        return []
    gpu = request.gpu_of_rank[rank]
    anywhere = not any(node.cpus for node in topology.nodes)
    if nodes or anywhere:
        where = [cpu.id for cpu in topology.cpus if topology.home(cpu.id) in nodes or anywhere]
        reasons = {unusable[cpu] for cpu in where if cpu in unusable}
        wanted = f"node {format_id_list(nodes)}" if nodes else "this machine"
        return [_lacking(request, rank, wanted, [], reasons)]
    if any(message.code == "device-node-unknown" for message in messages_of_gpu(request, gpu)):
        return []
    return [DEVICE_NODE_UNKNOWN(gpu=f"GPU {gpu}", reason="no source reports it")]


def _lacking(
    request: PlacementRequest, rank: int, wanted: str, left: Sequence[int], reasons: Collection[str]
) -> Message:
    """Return the warning that a rank gets nothing, or only the CPUs `left`, of what it should have."""
    consequence = f"it gets CPU {format_id_list(left)} only" if left else "it stays unbound"
    held = {"not-allowed": "other plans hold them (--avoid), or they are outside of the affinity mask or cpuset"}
    details = DETAILS | held if request.avoid else DETAILS
    why = "; ".join(f"{reason}: {details[reason]}" for reason in REASONS if reason in reasons)
    part = "only some of the CPUs" if left else "no CPU"
    template = DEVICE_CPUS_OUTSIDE if "not-allowed" in reasons and not request.avoid else DEVICE_CPUS_UNUSABLE
    gpu = request.gpu_of_rank[rank]
    return template(rank=rank, gpu=gpu, place=wanted, part=part, reasons=why, consequence=consequence)


def crowded(pool: Pool, ranks: Sequence[int]) -> Message:
    """Return the warning that there are more ranks next to a pool than it has cores."""
    cpus = [cpu for core in pool.cores for cpu in core.cpus]
    place = "one node" if pool.node == UNKNOWN else f"node {pool.node}"
    by_sibling = len(ranks) <= len(cpus)
    return GPU_RANKS_SHARE_CORES(
        ranks=format_id_list(ranks),
        place=place,
        cpus=format_id_list(cpus),
        consequence="SMT siblings of one core go to different ranks" if by_sibling else "ranks share CPUs",
    )
