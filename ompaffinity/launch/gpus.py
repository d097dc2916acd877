"""The GPU of a rank that a launcher started, and the ranks that share the CPUs next to it."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from ompaffinity.bind.live_plan import homes
from ompaffinity.devices.live import live_gpus
from ompaffinity.devices.model import GPUHome, GPUList
from ompaffinity.devices.visibility import VISIBILITY, PhysicalGPU, by_address, visible_gpus
from ompaffinity.errors import RequestError
from ompaffinity.launch.mask_groups import environments_of_ranks
from ompaffinity.messages import GPU_SHARING_UNKNOWN, Message, counted
from ompaffinity.placement.check_gpu import check_node
from ompaffinity.placement.request import SIZES
from ompaffinity.records import NamedTuple
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ompaffinity.devices.model import GPU
    from ompaffinity.launch.mask_groups import MaskGroup
    from ompaffinity.launch.ranks import LauncherRank
    from ompaffinity.topology.model import Topology


class GPUMaskGroup(NamedTuple):
    """The options of a plan for GPU ranks, the number of this process's rank in it, and the messages."""

    options: dict[str, Any]
    number: int
    messages: tuple[Message, ...] = ()


class Sharers(NamedTuple):
    """{PCI address: number of local ranks with this GPU}, and the number of this rank among those of its own GPU."""

    counts: Mapping[str, int]
    number: int
    messages: tuple[Message, ...] = ()


ALONE = Sharers({}, 0)


def gpus_of_group(options: Mapping[str, Any], group: MaskGroup, place: LauncherRank) -> GPUMaskGroup:
    """Return the options of a plan for the GPU ranks that share a mask.

    A local rank has the GPU with its own number, or the one in ``--gpus``. If only one GPU is visible to each process
    (Slurm, Ray), that one is its own.

    Raises:
        RequestError: ``--gpus`` names another number of GPUs than there are local ranks.
        TopologyError: the machine cannot be read.
    """
    given, size = dict(options), place.local_size
    chosen = given.get("gpus")
    if chosen is not None and len(chosen) != size:
        ranks = f"there are {size} local ranks" if size > 1 else "there is one local rank"
        raise RequestError(f"--gpus names {len(chosen)}, but {ranks}; name one GPU per local rank")
    nodes, cpus = given.get("numa_bind_nodes"), given.get("numa_bind_cpus")
    one_each = chosen is None and cpus is None and (nodes is None or len(nodes) == 1)
    if one_each and size > 1:
        topology = load_topology()
        visible = live_gpus(topology, user_nodes=nodes).gpus
        if len(visible) == 1:
            if nodes is not None:
                check_node(topology, 0, nodes[0])
            given.pop("numa_bind_nodes", None)
            alone = len(group.ranks) == 1
            sharers = ALONE if alone else _sharers(topology, visible[0], place)
            return options_of_own_gpu({**given, "numa_bind": True}, topology, visible[0], sharers, alone=alone)
    numbers = tuple(range(size)) if chosen is None else chosen
    return GPUMaskGroup(given | {"gpus": tuple(numbers[rank] for rank in group.ranks)}, group.number)


def _sharers(topology: Topology, own: GPU, place: LauncherRank) -> Sharers:
    """Return the ranks of each GPU, from the environments of the other ranks as far as they can be read."""
    size = place.local_size
    driver = live_gpus(topology, environ={}).gpus
    machine = _of_vendor(live_gpus(topology, environ={}, whole_bus=True).gpus, own)
    # If the driver hides the other GPUs (device control group), every rank numbers its own GPU 0.
    if len(driver) > 1 or len(machine) == 1:
        environments = environments_of_ranks(place, [name for name in VISIBILITY if name in os.environ])
        if environments is not None:
            addresses = {rank: _first_address(driver, found) for rank, found in environments.items() if rank < size}
            sharing = [rank for rank in sorted(addresses) if addresses[rank] == own.address]
            if place.local_rank in sharing:
                return Sharers(Counter(filter(None, addresses.values())), sharing.index(place.local_rank))
    if len(machine) >= size:
        return ALONE
    unknown = GPU_SHARING_UNKNOWN(ranks=size, gpus=counted(len(machine), "GPU"), address=own.address)
    counts = {device.address: size for device in (*machine, own)}
    return Sharers(counts, place.local_rank, (unknown,))


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
    """Return the options of a plan for all usable GPUs of this machine, in which this process has its own GPU.

    A process with one visible GPU cannot read the placements of the others. All processes make the same plan for every
    GPU of the machine, and each one uses the part of its own GPU, so that no CPU is assigned twice. A GPU of several
    ranks is counted once per rank. `alone`: no other rank shares the CPUs of this process.

    Raises:
        TopologyError: the machine cannot be read.
    """
    given = {name: value for name, value in options.items() if name not in SIZES}
    machine = _of_vendor(() if alone else live_gpus(topology, environ={}, whole_bus=True).gpus, own)
    others = [device for device in machine if device.address != own.address and may_use(topology, device.nodes)]
    ordered = sorted([own, *others], key=lambda device: by_address(device.address))
    all_homes: list[GPUHome] = []
    number = 0
    for device in ordered:
        for part in range(max(1, sharers.counts.get(device.address, 1))):
            if device is own and part == sharers.number:
                number = len(all_homes)
                all_homes += homes(GPUList.of([own]))
            else:
                all_homes.append(GPUHome(device.nodes, quiet=True))
    # The visible GPU of this process is GPU 0.
    numbers = [index + 1 if index < number else index for index in range(len(all_homes))]
    numbers[number] = 0
    gpu_options = {
        "tensor_parallel_size": len(all_homes),
        "gpus": tuple(numbers),
        "gpu_homes": (all_homes[number], *all_homes[:number], *all_homes[number + 1 :]),
    }
    return GPUMaskGroup(given | gpu_options, number, sharers.messages)


def may_use(topology: Topology, nodes: tuple[int, ...]) -> bool:
    """Return whether any CPU of these nodes is allowed for this process."""
    allowed = set(topology.allowed_cpus)
    return any(node.id in nodes and not allowed.isdisjoint(node.cpus) for node in topology.nodes)
