"""CPU and memory helpers under the names that vLLM's CPU backend uses (vllm.utils.cpu_resource_utils)."""

from __future__ import annotations

import os
import sys

from ompaffinity.bind.worker_placement import current_placement
from ompaffinity.errors import TopologyError
from ompaffinity.ids import parse_ordered_id_list
from ompaffinity.placement.model import RankPlacement
from ompaffinity.topology.limits import memory_left, mems_allowed, read_limits
from ompaffinity.topology.model import LogicalCPUInfo, MemoryNodeInfo
from ompaffinity.topology.nodes import NODE_ROOT, node_memory
from ompaffinity.topology.source import load_topology
from ompaffinity.topology.text import numbered
from ompaffinity.topology.tree import DirectoryTree

VISIBLE_NODES_VARIABLE = "CPU_VISIBLE_MEMORY_NODES"


def get_allowed_cpu_list() -> list[LogicalCPUInfo]:
    """Return the CPUs that the calling thread may run on, ascending.

    Raises:
        TopologyError: this machine cannot be read.
    """
    return [cpu for cpu in load_topology().cpus if cpu.allowed]


def get_memory_affinity(pid: int = 0) -> list[int]:
    """Return the memory nodes that a process (0: this one) may use: ``Mems_allowed_list`` of proc(5).

    Empty where the kernel does not say.

    Raises:
        TopologyError: there is no such process.
    """
    process = str(pid) if pid else "self"
    with DirectoryTree("/") as tree:
        if pid and tree.read(f"proc/{process}/status") is None:
            raise TopologyError(f"there is no process {pid} whose status can be read")
        return list(mems_allowed(tree, process) or ())


def get_visible_memory_node(assigned: list[int] | None = None) -> list[int]:
    """Return the memory nodes to plan with, in the order in which they are to be used.

    Those of `assigned`, or else of the environment variable ``CPU_VISIBLE_MEMORY_NODES``
    (``"1,0"``), that this process may use, in that order; without either all that it may use. ``[0]`` on macOS.

    Raises:
        IDListError: the variable is not an id list.
    """
    if sys.platform == "darwin":
        return [0]
    allowed = get_memory_affinity()
    chosen = os.environ.get(VISIBLE_NODES_VARIABLE, "").strip()
    wanted = assigned if assigned is not None else parse_ordered_id_list(chosen) if chosen else allowed
    return [node for node in wanted if node in allowed]


def get_memory_node_info(node: int = 0) -> MemoryNodeInfo:
    """Return the total and the available memory of a node, in bytes.

    Available is MemFree + Active(file) + Inactive(file) + SReclaimable. Both are clamped by the
    tightest memory limit of the control groups. A node that does not tell has an even part of the machine's.

    Raises:
        TopologyError: the machine has nodes, but not this one.
    """
    with DirectoryTree("/") as tree:
        nodes = numbered(tree.names(NODE_ROOT), "node")
        if nodes and node not in nodes:
            raise TopologyError(f"this machine has no memory node {node}")
        total, available = node_memory(tree, node)
        if total < 0:
            import psutil

            memory = psutil.virtual_memory()
            parts = max(1, len(nodes))
            total, available = int(memory.total) // parts, int(memory.available) // parts
        limit, left = read_limits(tree).memory_limit_bytes, memory_left(tree)
    return MemoryNodeInfo(
        total if limit is None else min(total, limit), available if left is None else min(available, left), node
    )


def get_device_total_memory(device_id: int = 0) -> int:  # noqa: ARG001
    """Return this worker's part of the memory that its nodes have, in bytes (a server's name for it).

    `device_id` is there for servers that give one; a CPU worker has one device.

    Raises:
        CapacityError: this machine does not tell how much memory it has.
    """
    from ompaffinity.bind.capacity import memory_budget

    return memory_budget(_current_or_alone(), utilization=1.0)


def determine_available_memory(utilization: float | None = None, explicit: int | None = None) -> int:
    """Return the bytes for this worker's KV cache after its model was loaded (a server's name for `kv_cache_bytes`).

    Raises:
        RequestError, CapacityError: as `kv_cache_bytes`.
    """
    from ompaffinity.bind.capacity import kv_cache_bytes

    return kv_cache_bytes(_current_or_alone(), utilization, explicit=explicit)


def _current_or_alone() -> RankPlacement:
    """Return this process's placement; outside of a worker that of one rank on all that there is."""
    return current_placement() or RankPlacement(0, 0, bound=False)
