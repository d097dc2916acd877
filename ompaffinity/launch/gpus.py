"""Which GPU a rank has that a launcher has started, and who shares the CPUs next to it."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.bind.live_plan import homes
from ompaffinity.devices.live import live_gpus
from ompaffinity.devices.model import GPUHome, GPUList
from ompaffinity.devices.visibility import VISIBILITY, PhysicalGPU, by_address, visible_gpus
from ompaffinity.errors import RequestError
from ompaffinity.launch.mask_groups import environments_of_ranks
from ompaffinity.messages import Message
from ompaffinity.placement.check_gpu import check_node
from ompaffinity.placement.request import SIZES
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ompaffinity.devices.model import GPU
    from ompaffinity.launch.mask_groups import MaskGroup
    from ompaffinity.launch.ranks import LauncherRank
    from ompaffinity.topology.model import Topology


class GPUMaskGroup(NamedTuple):
    """The options of a plan for GPU ranks, which rank of it this process is, and what there is to say of that."""

    options: dict[str, Any]
    number: int
    messages: tuple[Message, ...] = ()


class Sharers(NamedTuple):
    """How many local ranks have each GPU, by PCI address, and which of those on its own GPU this one is."""

    counts: Mapping[str, int]
    number: int
    messages: tuple[Message, ...] = ()


ALONE = Sharers({}, 0)


def gpus_of_group(options: Mapping[str, Any], group: MaskGroup, place: LauncherRank) -> GPUMaskGroup:
    """Return the options of a plan for the GPU ranks that share a mask.

    A local rank has the GPU of its number, or what ``--gpus`` says. Where each process sees one GPU alone (Slurm, Ray),
    that one is its own.

    Raises:
        RequestError: ``--gpus`` names another number of GPUs than there are local ranks.
        TopologyError: the machine cannot be read.
    """
    given, size = dict(options), place.local_world_size or 1
    chosen = given.get("gpus")
    if chosen is not None and len(chosen) != size:
        ranks = f"there are {size} local ranks" if size > 1 else "there is one local rank"
        raise RequestError(f"--gpus names {len(chosen)}, but {ranks}; name one for each")
    nodes, cpus = given.get("numa_bind_nodes"), given.get("numa_bind_cpus")
    one_each = chosen is None and cpus is None and (nodes is None or len(nodes) == 1)
    if one_each and size > 1:
        topology = load_topology()
        seen = live_gpus(topology, user_nodes=nodes).gpus
        if len(seen) == 1:
            if nodes is not None:
                check_node(topology, 0, nodes[0])
            given.pop("numa_bind_nodes", None)
            alone = len(group.ranks) == 1
            sharers = ALONE if alone else _sharers(topology, seen[0], place)
            return options_of_own_gpu({**given, "numa_bind": True}, topology, seen[0], sharers, alone=alone)
    numbers = tuple(range(size)) if chosen is None else chosen
    return GPUMaskGroup(given | {"gpus": tuple(numbers[rank] for rank in group.ranks)}, group.number)


def _sharers(topology: Topology, own: GPU, place: LauncherRank) -> Sharers:
    """Return who has which GPU: by what the other ranks were started with, as far as that tells."""
    size = place.local_world_size or 1
    driver = live_gpus(topology, environ={}).gpus
    machine = _of_vendor(live_gpus(topology, environ={}, whole_bus=True).gpus, own)
    # Where the driver hides the others (a device control group), their numbers say nothing: each one's is 0.
    if len(driver) > 1 or len(machine) == 1:
        environments = environments_of_ranks(place, [name for name in VISIBILITY if name in os.environ])
        if environments is not None:
            addresses = {rank: _first_address(driver, found) for rank, found in environments.items() if rank < size}
            together = [rank for rank in sorted(addresses) if addresses[rank] == own.address]
            if place.local_rank in together:
                return Sharers(Counter(filter(None, addresses.values())), together.index(place.local_rank))
    if len(machine) >= size:
        return ALONE
    text = (
        f"{size} local ranks share {len(machine)} {'GPU' if len(machine) == 1 else 'GPUs'}, and which of them have GPU"
        f" {own.address} is not known, so each one gets as much as if all had it; say --gpus, one GPU for each rank"
    )
    every = {device.address: size for device in (*machine, own)}
    return Sharers(every, place.local_rank, (Message("gpu-sharing-unknown", "warning", text),))


def _first_address(devices: Sequence[GPU], environ: Mapping[str, str]) -> str | None:
    """Return the address of the GPU that a process with this environment numbers 0, None for none."""
    known = [PhysicalGPU(d.address, d.vendor, d.name, d.uuid, d.parts) for d in devices]
    visible, _ = visible_gpus(known, environ)
    return visible[0].address if visible else None


def _of_vendor(devices: Sequence[GPU], own: GPU) -> list[GPU]:
    return [device for device in devices if device.vendor == own.vendor]


def options_of_own_gpu(
    options: Mapping[str, Any], topology: Topology, own: GPU, sharers: Sharers = ALONE, *, alone: bool = False
) -> GPUMaskGroup:
    """Return the options of a plan for all GPUs of this machine that can be bound; this process has that of one.

    Nobody tells a process that sees one GPU what the others have; but if each plans for every GPU of the machine and
    takes the part of its own, no CPU is given twice. A GPU of several ranks counts as often. `alone`: nobody shares the
    CPUs of this process.

    Raises:
        TopologyError: the machine cannot be read.
    """
    given = {name: value for name, value in options.items() if name not in SIZES}
    every = [] if alone else live_gpus(topology, environ={}, whole_bus=True).gpus
    others = [
        device for device in _of_vendor(every, own) if device.address != own.address and may_use(topology, device.nodes)
    ]
    ordered = sorted([own, *others], key=lambda device: by_address(device.address))
    found: list[GPUHome] = []
    number = 0
    for device in ordered:
        for part in range(max(1, sharers.counts.get(device.address, 1))):
            if device is own and part == sharers.number:
                number = len(found)
                found += homes(GPUList.of([own]))
            else:
                found.append(GPUHome(device.nodes, quiet=True))
    # To this process its own is GPU 0.
    numbers = [place + 1 if place < number else place for place in range(len(found))]
    numbers[number] = 0
    told = {
        "tensor_parallel_size": len(found),
        "gpus": tuple(numbers),
        "gpu_homes": (found[number], *found[:number], *found[number + 1 :]),
    }
    return GPUMaskGroup(given | told, number, sharers.messages)


def may_use(topology: Topology, nodes: tuple[int, ...]) -> bool:
    """Return whether this process may use any CPU of these nodes."""
    allowed = set(topology.allowed_cpus)
    return any(node.id in nodes and not allowed.isdisjoint(node.cpus) for node in topology.nodes)
