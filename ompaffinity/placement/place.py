"""The placement of each rank: from the cores that it is assigned to masks, memory nodes and a memory policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.placement.memory import allowed_memory_nodes, memory_nodes, memory_policy
from ompaffinity.placement.model import RankPlacement, Share
from ompaffinity.placement.request import OWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.placement.model import Assignment, Core
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def place_ranks(
    topology: Topology, request: PlacementRequest, assignment: Assignment, granularity: str
) -> tuple[RankPlacement, ...]:
    """Return the placement of each rank, in the order of the ranks; `granularity` is ``"thread"`` or ``"team"``."""
    shares = _within_quota(topology.limits.cpu_quota, assignment.shares)
    affinities = _affinities(topology, request, shares)
    usable = allowed_memory_nodes(topology, request.nodes)
    gpus = request.gpu_of_rank if request.for_gpus else (None,) * len(shares)
    near = [
        share and _cpus_near_memory(topology, request, gpu, (*share.cpus, *share.helper_cpus))
        for gpu, share in zip(gpus, shares)
    ]
    placements = []
    for rank, (share, affinity, gpu, nodes) in enumerate(
        zip(shares, affinities, gpus, memory_nodes(topology, near, usable))
    ):
        if share is None:
            placements.append(RankPlacement(rank, rank, bound=False, gpu=gpu))
            continue
        placements.append(
            RankPlacement(
                rank=rank,
                local_rank=rank,
                cpus=share.cpus,
                helper_cpus=share.helper_cpus,
                places=_team_places(request, share, affinity) if granularity == "team" else _places(share, affinity),
                affinity=affinity,
                nodes=nodes,
                memory_policy=memory_policy(topology, request, nodes),
                gpu=gpu,
            )
        )
    return tuple(placements)


def _within_quota(quota: float | None, shares: Sequence[Share | None]) -> Sequence[Share | None]:
    """Drop threads beyond the rank's part of the CPU quota, rounded down, at least one; the first ones stay."""
    bound = sum(share is not None for share in shares)
    if quota is None or not bound:
        return shares
    most = max(1, int(quota // bound))
    return [None if share is None else share._replace(compute=_first_threads(share.compute, most)) for share in shares]


def _first_threads(cores: Sequence[Core], count: int) -> tuple[Core, ...]:
    kept = []
    for core in cores:
        if count > 0:
            kept.append(core._replace(threads=core.threads[:count]))
        count -= len(core.threads)
    return tuple(kept)


def _affinities(topology: Topology, request: PlacementRequest, shares: Sequence[Share | None]) -> list[tuple[int, ...]]:
    """Return the mask of each rank's process: its own CPUs.

    With `request.helper_cpus` of ``"node"``, a rank without CPUs for its other threads gets those of all ranks of its
    nodes.
    """
    own = [tuple(sorted({*share.cpus, *_cpus_for_other_threads(request, share)})) if share else () for share in shares]
    if request.helper_cpus == OWN:
        return own
    owned_on = _owned_by_node(topology, shares)
    # Ranks of a node share one tuple.
    shared: dict[frozenset[int], tuple[int, ...]] = {}
    affinities = []
    for share, affinity in zip(shares, own):
        if share is None or _cpus_for_other_threads(request, share):
            affinities.append(affinity)
            continue
        nodes = frozenset(map(topology.home, share.cpus))
        if nodes not in shared:
            shared[nodes] = tuple(sorted({cpu for node in nodes for cpu in owned_on[node]}))
        affinities.append(shared[nodes])
    return affinities


def _owned_by_node(topology: Topology, shares: Sequence[Share | None]) -> dict[int, set[int]]:
    """Return {node: CPUs of the ranks there}."""
    owned: dict[int, set[int]] = {}
    for share in shares:
        for cpu in (*share.cpus, *share.helper_cpus) if share else ():
            owned.setdefault(topology.home(cpu), set()).add(cpu)
    return owned


def _cpus_for_other_threads(request: PlacementRequest, share: Share) -> set[int]:
    """Return the CPUs of a rank that its OpenMP threads leave to its other threads."""
    helpers = set(share.helper_cpus)
    # The other threads of a GPU rank are many, and use all of its cores.
    return helpers | share.siblings if request.for_gpus else helpers or set(share.siblings)


def _places(share: Share, affinity: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the mask of each OpenMP thread: its CPU.

    Threads that the first one starts later inherit its mask: it keeps all that the other threads leave.
    """
    others = set(share.cpus[1:])
    first = tuple(cpu for cpu in affinity if cpu not in others) if others else affinity
    if len(first) == 1:
        # Only its own CPU is left: it shares the CPUs of the others, so that later threads do not all run on one.
        first = affinity
    return (first, *((cpu,) for cpu in share.cpus[1:]))


def _team_places(request: PlacementRequest, share: Share, affinity: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the mask of each OpenMP thread of a team that floats within the rank's CPUs."""
    team = affinity if request.for_gpus else tuple(sorted({*share.cpus, *share.helper_cpus}))
    return (affinity, *(team for _ in share.cpus[1:]))


def _cpus_near_memory(
    topology: Topology, request: PlacementRequest, gpu: int | None, cpus: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the CPUs whose memory a rank uses: its own, or those of the node that the user names for its GPU."""
    if gpu is None or request.numa_bind_cpus is None or request.numa_bind_nodes is None:
        return cpus
    return topology.node(request.numa_bind_nodes[gpu]).cpus
