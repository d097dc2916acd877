"""Which GPU a rank has that a launcher has started, and which other ranks it shares a node with."""

from __future__ import annotations

from ompaffinity.devices.devices import DeviceList, live_devices
from ompaffinity.devices.homes import homes
from ompaffinity.devices.visibility import by_address
from ompaffinity.errors import RequestError
from ompaffinity.placement.numa_bind import DeviceHome
from ompaffinity.placement.request import SIZES
from ompaffinity.topology.load import load_topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.devices.devices import Device
    from ompaffinity.launch.masks import Seat
    from ompaffinity.topology.model import Topology


def gpus_of_seat(options: Mapping[str, Any], seat: Seat, local_world_size: int) -> tuple[dict[str, Any], int]:
    """Return the options of a plan for the GPU ranks that share a mask, and which rank of it this one is.

    A local rank has the GPU of its number, or what ``--gpus`` says. Where each process sees one GPU alone (Slurm, Ray),
    that one is its own.

    Raises:
        RequestError: ``--gpus`` names another number of GPUs than there are local ranks.
        TopologyError: the machine cannot be read.
    """
    given = dict(options)
    chosen = given.get("gpus")
    if chosen is not None and len(chosen) != local_world_size:
        raise RequestError(
            f"--gpus names {len(chosen)} GPUs, but there are {local_world_size} local ranks; name one each"
        )
    by_hand = chosen is not None or "numa_bind_nodes" in given or "numa_bind_cpus" in given
    if not by_hand and local_world_size > 1:
        topology = load_topology()
        seen = live_devices(topology).devices
        if len(seen) == 1:
            return options_of_own_gpu(given, topology, seen[0], alone=len(seat.ranks) == 1)
    numbers = tuple(range(local_world_size)) if chosen is None else chosen
    return given | {"gpus": tuple(numbers[rank] for rank in seat.ranks)}, seat.number


def options_of_own_gpu(
    options: Mapping[str, Any], topology: Topology, own: Device, *, alone: bool = False
) -> tuple[dict[str, Any], int]:
    """Return the options of a plan for all GPUs of this machine that can be bound, and which rank of it has this one.

    Nobody tells a process that sees one GPU what the others have; but if each plans for every GPU of the machine and
    takes the part of its own, no CPU is given twice. `alone`: nobody shares the CPUs of this process.

    Raises:
        TopologyError: the machine cannot be read.
    """
    given = {name: value for name, value in options.items() if name not in SIZES}
    every = [own] if alone else [*live_devices(topology, environ={}).devices]
    others = [device for device in every if device.address != own.address and may_use(topology, device.nodes)]
    # In the order that every process finds; but this one's own is GPU 0 to it.
    ordered = sorted([own, *others], key=lambda device: by_address(device.address))
    told = {
        "tensor_parallel_size": len(ordered),
        "gpus": tuple(0 if device is own else 1 + others.index(device) for device in ordered),
        "device_homes": (*homes(DeviceList.of([own])), *(DeviceHome(device.nodes) for device in others)),
    }
    return given | told, ordered.index(own)


def may_use(topology: Topology, nodes: tuple[int, ...]) -> bool:
    """Return whether this process may use any CPU of these nodes."""
    allowed = set(topology.allowed_cpus)
    return any(node.id in nodes and not allowed.isdisjoint(node.cpus) for node in topology.nodes)
