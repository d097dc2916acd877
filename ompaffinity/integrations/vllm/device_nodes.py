"""The NUMA node of a GPU's worker, by the names that servers know."""

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
    """Return the NUMA node that a GPU is next to, None where nothing tells (a server's name for it).

    `index` is its number in this process, as CUDA_VISIBLE_DEVICES and its like leave it; no driver is initialised.

    Raises:
        RequestError: this process sees no such GPU.
        TopologyError: the machine cannot be read.
    """
    return _entry(get_all_device_numa_nodes(), index)


def get_all_device_numa_nodes() -> list[int | None]:
    """Return the NUMA node that each GPU of this process is next to, None for one that nothing is known of.

    Raises:
        TopologyError: the machine cannot be read.
    """
    return [device.nodes[0] if device.nodes else None for device in live_gpus(load_topology()).gpus]


def get_auto_numa_nodes() -> list[int | None]:
    """Return the NUMA node that the worker of each GPU of this process would be bound to; a server's name for it.

    None for a GPU that nothing is known of, or that is next to no CPU that this process may use. Each GPU is judged for
    itself, and in whatever mask or cpuset this process is.

    Raises:
        TopologyError: the machine cannot be read.
    """
    topology = load_topology()
    usable = _usable_nodes(topology)
    return [next((node for node in device.nodes if node in usable), None) for device in live_gpus(topology).gpus]


def get_numa_node_if_available(config: NUMABindConfig | Any, gpu: int) -> int | None:
    """Return the NUMA node for the worker of a GPU: the user's, else what `get_auto_numa_nodes` says.

    `config` has `numa_bind` and `numa_bind_nodes`, as a `NUMABindConfig`. None without `numa_bind`, where nothing is
    known of the GPU, and where this process may use no CPU of that node.

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
    """Return the nodes of which this process may use a CPU."""
    allowed = set(topology.allowed_cpus)
    return {node.id for node in topology.nodes if not allowed.isdisjoint(node.cpus)}


def _entry(nodes: list[int | None], index: int) -> int | None:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(nodes):
        raise RequestError(f"GPU {index!r} is not one of the {len(nodes)} GPUs that there are")
    return nodes[index]
