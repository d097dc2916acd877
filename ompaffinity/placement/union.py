"""The placement of one process that stands for several ranks: all that they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.placement.memory import memory_policy
from ompaffinity.placement.model import RankPlacement
from ompaffinity.placement.request import PlacementRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.topology.model import Topology


def union_of(topology: Topology, ranks: Sequence[RankPlacement]) -> RankPlacement:
    """Return the placement of a process that has the CPUs, the memory and the GPUs of these ranks.

    Its `gpus` are theirs. It is unbound if all of them are.
    """
    devices = tuple(rank.gpu for rank in ranks if rank.gpu is not None)
    bound = [rank for rank in ranks if rank.bound]
    if not bound:
        return RankPlacement(0, 0, bound=False, gpus=devices)
    cpus = tuple(dict.fromkeys(cpu for rank in bound for cpu in rank.cpus))
    affinity = tuple(sorted({cpu for rank in bound for cpu in rank.affinity}))
    nodes = tuple(sorted({node for rank in bound for node in rank.nodes}))
    return RankPlacement(
        rank=0,
        local_rank=0,
        cpus=cpus,
        helper_cpus=tuple(sorted({cpu for rank in bound for cpu in rank.helper_cpus} - set(cpus))),
        places=(affinity,) * len(cpus),
        affinity=affinity,
        nodes=nodes,
        memory_policy=memory_policy(topology, PlacementRequest(), nodes),
        node_ranks=(1,) * len(nodes),
        gpus=devices,
    )
