"""The NUMA node of a GPU's worker, in functions with the names that servers use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.devices.live import live_gpus
from ompaffinity.errors import RequestError
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.placement.check_gpu import NUMABindConfig
    from ompaffinity.topology.model import Topology


def get_device_numa_node(index: int) -> int | None:
    """Return the NUMA node that is local to a GPU, None where unknown (a name in servers).

    `index` is its number in this process, after CUDA_VISIBLE_DEVICES and similar variables; no driver is initialised.

    Raises:
        RequestError: no visible GPU has this number.
        TopologyError: the machine cannot be read.
    """
    return _entry(get_all_device_numa_nodes(), index)


def get_all_device_numa_nodes() -> list[int | None]:
    """Return the NUMA node that is local to each visible GPU, None where unknown.

    Raises:
        TopologyError: the machine cannot be read.
    """
    return [device.nodes[0] if device.nodes else None for device in live_gpus(load_topology()).gpus]


def get_auto_numa_nodes() -> list[int | None]:
    """Return the NUMA node for the worker of each visible GPU (a name in servers).

    None for a GPU whose node is unknown or has no CPU that is allowed for this process. Each GPU is handled
    independently.

    Raises:
        TopologyError: the machine cannot be read.
    """
    topology = load_topology()
    usable = _usable_nodes(topology)
    return [next((node for node in device.nodes if node in usable), None) for device in live_gpus(topology).gpus]


def get_numa_node_if_available(config: NUMABindConfig | Any, gpu: int) -> int | None:
    """Return the NUMA node for the worker of a GPU: the one in `config`, or else that of `get_auto_numa_nodes`.

    `config` has the attributes `numa_bind` and `numa_bind_nodes`, as a `NUMABindConfig`. None without `numa_bind`,
    where the node is unknown, and where no CPU of the node is allowed for this process.

    Raises:
        RequestError: there is no such GPU.
        TopologyError: the machine cannot be read.
    """
    if not config.numa_bind:
        return None
    if config.numa_bind_nodes is None:
        return _entry(get_auto_numa_nodes(), gpu)
    node = _entry([*config.numa_bind_nodes], gpu)
    return node if node in _usable_nodes(load_topology()) else None


def _usable_nodes(topology: Topology) -> set[int]:
    """Return the nodes with a CPU that is allowed for this process."""
    allowed = set(topology.allowed_cpus)
    return {node.id for node in topology.nodes if not allowed.isdisjoint(node.cpus)}


def _entry(nodes: list[int | None], index: int) -> int | None:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(nodes):
        raise RequestError(f"GPU {index!r} is not one of the {len(nodes)} GPUs; numbers start at 0")
    return nodes[index]
