"""A request for GPU ranks, completed with where the GPUs of the machine are."""

from __future__ import annotations

from ompaffinity.devices.devices import live_devices
from ompaffinity.devices.recorded import NoDevicesError, recorded_devices
from ompaffinity.errors import TopologyError
from ompaffinity.placement.numa_bind import DeviceHome, checked_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ompaffinity.devices.devices import DeviceList
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def with_device_homes(
    request: PlacementRequest, topology: Topology, *, machine: str | None = None, synthetic: bool = False
) -> PlacementRequest:
    """Return a request for GPU ranks with the homes of the GPUs: of this machine, or of the record `machine`.

    Other requests, and those that bring the homes, are returned as they are. An invented machine has no GPU.

    Raises:
        RequestError: the user's nodes are no list of nodes.
        TopologyError: the record cannot be read, or tells nothing of GPUs and the user does not either.
    """
    if not request.for_gpus or request.device_homes is not None:
        return request
    nodes, cpus = checked_maps(request.numa_bind_nodes, request.numa_bind_cpus)
    if synthetic:
        return request
    if machine is None:
        return request._replace(device_homes=homes(live_devices(topology, user_nodes=nodes)))
    try:
        return request._replace(device_homes=homes(recorded_devices(machine, topology, user_nodes=nodes)))
    except NoDevicesError as error:
        if nodes is not None or cpus is not None:
            return request
        raise TopologyError(f"{error}; or say with --numa-bind-nodes which NUMA node each GPU is next to") from None


def homes(found: DeviceList) -> tuple[DeviceHome, ...]:
    """Return where each GPU of a list is; what is said of the list as a whole is said of each."""
    of_devices = {message for device in found.devices for message in device.messages}
    of_all = tuple(message for message in found.messages if message not in of_devices)
    return tuple(
        DeviceHome(device.nodes, (*of_all, *device.messages), vendor=device.vendor) for device in found.devices
    )
