"""What goes with the GPUs that Ray gave an actor: which ones is known inside of it alone.

Source: Ray's documentation, Accelerator Support: Ray sets CUDA_VISIBLE_DEVICES, or another vendor's variable, in the
process of an actor before its ``__init__``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from ompaffinity.devices.live import live_gpus
from ompaffinity.launch.gpus import options_of_own_gpu
from ompaffinity.messages import GPU_OF_RAY_UNSEEN, Message
from ompaffinity.openmp.variables import BINDING_VARIABLES
from ompaffinity.placement.document import (
    PLACEMENT_VARIABLE,
    gpu_placements_from_document,
    placement_document,
)
from ompaffinity.placement.environment import requested
from ompaffinity.placement.fields import Source, decode_document
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.union import union_of
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.devices.model import GPU
    from ompaffinity.integrations.ray.cluster import HostPlan
    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.topology.model import Topology

GPU_VARIABLE = "OMPAFFINITY_GPU_PLACEMENTS"
"""In the environment of a GPU actor: what goes with each GPU of its node."""


def gpu_table(host: HostPlan, node_id: str) -> str:
    """Return what an actor of that node looks its placement up in, as JSON."""
    placements = {address: placement_document(placement) for address, placement in host.by_gpu.items()}
    return json.dumps({"node_id": node_id, "by_gpu": placements})


def placement_of_rays_gpus() -> tuple[RankPlacement, tuple[Message, ...]] | None:
    """Return what goes with the GPUs that Ray gave this actor, and warnings; None where it gave none.

    It comes from the plan of `actor_options`; without one each GPU has its part of the CPUs next to it. The
    placement is published in this process's environment, and the OpenMP team that torch will load floats within it.

    Raises:
        RequestError: OMPAFFINITY_GPU_PLACEMENTS does not hold what `actor_options` put there.
        TopologyError: the machine cannot be read.
    """
    import ray

    given = ray.get_gpu_ids() if ray.is_initialized() else []
    if not given:
        return None
    topology = load_topology()
    own = _own(given, live_gpus(topology).gpus)
    if not own:
        return _published(union_of(topology, ())), (GPU_OF_RAY_UNSEEN(gpus=", ".join(map(str, given))),)
    table = _planned(os.environ.get(GPU_VARIABLE), ray.get_runtime_context().get_node_id())
    ranks: list[RankPlacement] = []
    messages: list[Message] = []
    for number, device in enumerate(own):
        planned = table.get(device.address)
        if planned is None:
            planned, more = _part(topology, device)
            messages += more
        else:
            messages += device.messages
        ranks.append(planned._replace(gpu=number))
    placement = ranks[0] if len(ranks) == 1 else union_of(topology, ranks)
    return _published(placement), tuple(message for message in messages if message.level == "warning")


def _own(given: Sequence[object], seen: Sequence[GPU]) -> list[GPU]:
    """Return the GPUs that are this actor's: all visible ones, or by number where Ray hides none."""
    if len(given) == len(seen):
        return [*seen]
    numbers = [int(word) for word in map(str, given) if word.isascii() and word.isdigit()]
    return [seen[number] for number in numbers if number < len(seen)]


def _planned(text: str | None, node_id: str) -> dict[str, RankPlacement]:
    """Return {PCI address: placement} of this node, nothing where there is no plan."""
    if text is None:
        return {}
    source = Source(GPU_VARIABLE, "does not hold placements", "unset it, or start the actor again with actor_options")
    planned_for, placements = gpu_placements_from_document(decode_document(text, source), source)
    # A table of another node was inherited from an actor there.
    return placements if planned_for == node_id else {}


def _part(topology: Topology, own: GPU) -> tuple[RankPlacement, tuple[Message, ...]]:
    group = options_of_own_gpu({"numa_bind": True}, topology, own)
    plan = make_plan(topology, requested(group.options, os.environ))
    return plan.ranks[group.number]._replace(rank=0, local_rank=0), plan.messages


def _published(placement: RankPlacement) -> RankPlacement:
    """Return the placement with this actor's rank, and publish it in the environment of this process."""
    rank, local_rank = (os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK"))
    if rank.isdigit() and local_rank.isdigit():
        placement = placement._replace(rank=int(rank), local_rank=int(local_rank))
    if placement.bound:
        for name in BINDING_VARIABLES:
            os.environ.pop(name, None)
        os.environ["OMP_NUM_THREADS"] = str(len(placement.cpus))
    os.environ[PLACEMENT_VARIABLE] = json.dumps(placement_document(placement))
    return placement
