"""NUMA nodes from sysfs: their CPUs, memory and distances.

Sources: the kernel's Documentation/ABI/stable/sysfs-devices-node; ACPI 6.5, 5.2.17 (SLIT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.topology.model import UNKNOWN, MemoryNodeInfo
from ompaffinity.topology.text import numbered, plain_number, read_id_list, read_ids, read_number, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.topology.model import Limits
    from ompaffinity.topology.tree import Tree

NODE_ROOT = "sys/devices/system/node"
WEIGHTS_ROOT = "sys/kernel/mm/mempolicy/weighted_interleave"
GPU_ROOT = "proc/driver/nvidia/gpus"
MAX_NODES = 1024
"""MAX_NUMNODES, the kernel's include/linux/numa.h with the largest CONFIG_NODES_SHIFT."""
MAX_LISTED = 4_000_000
"""CPUs in the lists of all nodes; with numa=fake each node may list all CPUs."""
RECLAIMABLE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
"""The memory of a node that the kernel can allocate without swapping."""


def read_nodes(tree: Tree, online: Iterable[int], limits: Limits) -> tuple[MemoryNodeInfo, ...]:
    """Return every node, ascending; none where the machine has no NUMA information.

    A node's CPUs are those of its list that are in `online`; nodes that are one (numa=fake) list the same CPUs.

    Raises:
        TopologyError: there are more nodes than Linux has, or their lists have so many CPUs that they contradict each
            other.
    """
    ids = numbered(tree.names(NODE_ROOT), "node")
    if len(ids) > MAX_NODES:
        raise TopologyError(f"the machine has {len(ids)} NUMA nodes; Linux has at most {MAX_NODES}")
    known = set(online)
    gpu_nodes = _gpu_memory_nodes(tree)
    nodes = []
    left = MAX_LISTED
    for node in ids:
        directory = f"{NODE_ROOT}/node{node}"
        listed = read_ids(tree, f"{directory}/cpulist", f"{directory}/cpumap")
        if listed is None:
            listed = numbered(tree.names(directory), "cpu")
        left -= len(listed)
        if left < 0:
            raise TopologyError("the CPU lists of its nodes contradict each other: too many nodes list too many CPUs")
        cpus = tuple(cpu for cpu in listed if cpu in known)
        total, available = node_memory(tree, node)
        nodes.append(
            MemoryNodeInfo(
                total_memory=total,
                available_memory=available,
                id=node,
                cpus=cpus,
                has_memory=total > 0 if total != UNKNOWN else _has_memory(tree, node),
                allowed=limits.cpuset_nodes is None or node in limits.cpuset_nodes,
                distances=_distances(tree, node, ids),
                device_memory=not cpus and node in gpu_nodes,
                interleave_weight=_interleave_weight(tree, node) if len(ids) > 1 else UNKNOWN,
            )
        )
    return tuple(nodes)


def _interleave_weight(tree: Tree, node: int) -> int:
    weight = read_number(tree, f"{WEIGHTS_ROOT}/node{node}")
    return UNKNOWN if weight is None else weight


def node_memory(tree: Tree, node: int) -> tuple[int, int]:
    """Return (total, available) bytes of a node, each `UNKNOWN` where it is not reported."""
    memory = parse_meminfo(read_text(tree, f"{NODE_ROOT}/node{node}/meminfo") or "")
    available = sum(memory.get(name, 0) for name in RECLAIMABLE) if "MemFree" in memory else UNKNOWN
    return memory.get("MemTotal", UNKNOWN), available


def whole_memory(tree: Tree, nodes: tuple[MemoryNodeInfo, ...]) -> int:
    """Return the total bytes of a machine without nodes; `UNKNOWN` with nodes, which have their own totals."""
    if nodes:
        return UNKNOWN
    return parse_meminfo(read_text(tree, "proc/meminfo") or "").get("MemTotal", UNKNOWN)


def _gpu_memory_nodes(tree: Tree) -> set[int]:
    """Return the nodes that the NVIDIA driver created for GPU memory (coherent links: POWER9, Grace)."""
    nodes = set()
    for address in tree.names(GPU_ROOT):
        for line in (read_text(tree, f"{GPU_ROOT}/{address}/numa_status") or "").splitlines():
            name, _, value = line.partition(":")
            number = plain_number(value.strip())
            if name == "Node" and number is not None:
                nodes.add(number)
    return nodes


def parse_meminfo(text: str) -> dict[str, int]:
    """Return {field: bytes} of a ``Node 0 MemTotal:  1234 kB`` file (or of /proc/meminfo)."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(":")
        number, *unit = value.split() or [""]
        size = plain_number(number)
        if name and size is not None:
            sizes[name.split()[-1]] = size * (1024 if unit == ["kB"] else 1)
    return sizes


def _has_memory(tree: Tree, node: int) -> bool | None:
    with_memory = read_id_list(tree, f"{NODE_ROOT}/has_memory")
    return None if with_memory is None else node in with_memory


def _distances(tree: Tree, node: int, ids: list[int]) -> dict[int, int] | None:
    """Return {node: distance} of a node's row; None where its columns are unknown."""
    row = [plain_number(word) for word in (read_text(tree, f"{NODE_ROOT}/node{node}/distance") or "").split()]
    columns = ids
    if row and len(row) != len(ids):
        # The columns are the online nodes; a container may hide some of their directories.
        lists = [read_id_list(tree, f"{NODE_ROOT}/{name}") or [] for name in ("online", "possible")]
        columns = next((nodes for nodes in lists if len(nodes) == len(row)), [])
    wanted = set(ids)
    known = {other: distance for other, distance in zip(columns, row) if other in wanted and distance is not None}
    return known if len(known) == len(wanted) else None
