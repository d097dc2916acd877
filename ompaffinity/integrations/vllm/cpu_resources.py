"""CPU and memory helpers under the names that vLLM's CPU backend uses (vllm.utils.cpu_resource_utils)."""

from __future__ import annotations

import os
import sys

from ompaffinity.bind.worker_placement import current_placement
from ompaffinity.errors import TopologyError
from ompaffinity.ids import format_id_list, parse_ordered_id_list
from ompaffinity.placement.model import RankPlacement
from ompaffinity.topology.limits import memory_left, mems_allowed, read_limits
from ompaffinity.topology.model import LogicalCPUInfo, MemoryNodeInfo
from ompaffinity.topology.nodes import NODE_ROOT, node_memory
from ompaffinity.topology.source import load_topology
from ompaffinity.topology.text import numbered
from ompaffinity.topology.tree import DirectoryTree

VISIBLE_NODES_VARIABLE = "CPU_VISIBLE_MEMORY_NODES"


def get_allowed_cpu_list() -> list[LogicalCPUInfo]:
    """Return the allowed CPUs of the calling thread, ascending.

    Raises:
        TopologyError: this machine cannot be read.
    """
    return [cpu for cpu in load_topology().cpus if cpu.allowed]


def get_memory_affinity(pid: int = 0) -> list[int]:
    """Return the allowed memory nodes of a process (0: this one): ``Mems_allowed_list`` of proc_pid_status(5).

    The list is empty if the kernel does not report them.

    Raises:
        TopologyError: there is no such process.
    """
    process = str(pid) if pid else "self"
    with DirectoryTree("/") as tree:
        if pid and tree.read(f"proc/{process}/status") is None:
            raise TopologyError(f"there is no process {pid} with a readable status; pass a live process id")
        return list(mems_allowed(tree, process) or ())


def get_visible_memory_node(assigned: list[int] | None = None) -> list[int]:
    """Return the memory nodes for planning, in order of preference.

    These are the nodes of `assigned`, or else of the environment variable ``CPU_VISIBLE_MEMORY_NODES`` (``"1,0"``), or
    else all nodes, restricted to the allowed ones. ``[0]`` on macOS.

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
    tightest memory limit of the control groups. A node without these values gets an even part of the machine's memory.

    Raises:
        TopologyError: the machine has nodes, but not this one.
    """
    with DirectoryTree("/") as tree:
        nodes = numbered(tree.names(NODE_ROOT), "node")
        if nodes and node not in nodes:
            raise TopologyError(f"this machine has no memory node {node}; its nodes are {format_id_list(nodes)}")
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
    """Return this worker's part of the memory of its nodes, in bytes (a name in servers).

    `device_id` is accepted for servers that pass one; a CPU worker has one device.

    Raises:
        CapacityError: the memory of this machine is unknown.
    """
    from ompaffinity.bind.capacity import memory_budget

    return memory_budget(_current_or_alone(), utilization=1.0)


def determine_available_memory(utilization: float | None = None, explicit: int | None = None) -> int:
    """Return the bytes for this worker's KV cache after its model is loaded (a name in servers for `kv_cache_bytes`).

    Raises:
        RequestError, CapacityError: as `kv_cache_bytes`.
    """
    from ompaffinity.bind.capacity import kv_cache_bytes

    return kv_cache_bytes(_current_or_alone(), utilization, explicit=explicit)


def _current_or_alone() -> RankPlacement:
    """Return the placement of this process; outside of a worker, an unbound rank on the whole machine."""
    return current_placement() or RankPlacement(0, 0, bound=False)
