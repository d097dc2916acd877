"""Which memory nodes a rank uses, and under which policy."""

from __future__ import annotations

from ompaffinity.errors import NoMemoryNodeError
from ompaffinity.placement.request import AUTO
from ompaffinity.topology.model import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import MemoryNodeInfo, Topology


def nearest_memory_node(topology: Topology, cpus: Iterable[int], within: tuple[int, ...] | None = None) -> int:
    """Return the allowed node with memory (of the nodes `within`, if given) that is nearest to `cpus`.

    Distance is the sum of the ACPI SLIT distances (10 = local, unitless) from each CPU's
    node; equal distances go to the lowest node id. A node whose memory is unknown counts as
    having it; a GPU's memory does not count.

    Raises:
        NoMemoryNodeError: no allowed node has memory.
    """
    nodes = _candidates(topology, within)
    homes = [topology.cpu(cpu).numa_node for cpu in cpus]
    return min(nodes, key=lambda node: (sum(topology.distance(home, node) for home in homes), node))


def _candidates(topology: Topology, within: tuple[int, ...] | None) -> list[int]:
    nodes = [
        node.id
        for node in topology.nodes
        if node.allowed and _may_have_memory(node) and (within is None or node.id in within)
    ]
    if not nodes:
        raise NoMemoryNodeError("no NUMA node that this process may use has memory")
    return nodes


def _may_have_memory(node: MemoryNodeInfo) -> bool:
    return node.has_memory is not False and not node.device_memory


def memory_nodes(topology: Topology, cpus: Iterable[int], within: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the memory nodes for a rank on `cpus`: of each of its nodes the node itself, or else the nearest.

    Where no CPU of the rank says on which node it is: all nodes with memory. Empty on a machine
    without NUMA information.

    Raises:
        NoMemoryNodeError: as `nearest_memory_node`.
    """
    if not topology.nodes:
        return ()
    one_cpu_of = {topology.cpu(cpu).numa_node: cpu for cpu in cpus}
    if one_cpu_of.keys() <= {UNKNOWN}:
        return tuple(_candidates(topology, within)) if one_cpu_of else ()
    return tuple(
        sorted({nearest_memory_node(topology, [cpu], within) for home, cpu in one_cpu_of.items() if home != UNKNOWN})
    )


def memory_policy(topology: Topology, request: PlacementRequest, nodes: tuple[int, ...]) -> str:
    """Return the policy of a rank with these memory nodes: bind, preferred, interleave or none."""
    if request.memory_policy != AUTO:
        return request.memory_policy if nodes else "none"
    if sum(map(_may_have_memory, topology.nodes)) <= 1 or not nodes:
        return "none"
    return "bind" if len(nodes) == 1 else "interleave"
