"""Machines as files: a Topology written as the sysfs tree that a kernel would show."""

from __future__ import annotations

from collections.abc import Iterable

from ompaffinity.ids import format_id_list
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, Topology

CPU_ROOT = "sys/devices/system/cpu"
NODE_ROOT = "sys/devices/system/node"


MASKS = {"core_cpus_list": "thread_siblings", "package_cpus_list": "core_siblings"}
"""The older masks beside the lists: what lscpu reads."""


def format_mask(ids: Iterable[int]) -> str:
    """Return ids as a kernel mask: words of 32 bits in hexadecimal, the highest first."""
    digits = f"{sum(1 << number for number in ids):x}"
    digits = digits.rjust(-(-len(digits) // 8) * 8, "0")
    return ",".join(digits[start : start + 8] for start in range(0, len(digits), 8))


def sysfs_files(topology: Topology) -> dict[str, bytes]:
    """Return {path: content} of sys/ and proc/ on this machine."""
    files: dict[str, str] = {}
    online = [cpu for cpu in topology.cpus if cpu.online]
    files[f"{CPU_ROOT}/online"] = format_id_list(cpu.id for cpu in online)
    files[f"{CPU_ROOT}/present"] = format_id_list(cpu.id for cpu in topology.cpus)
    files[f"{CPU_ROOT}/possible"] = f"0-{max(cpu.id for cpu in topology.cpus) + 3}"
    files[f"{CPU_ROOT}/isolated"] = format_id_list(cpu.id for cpu in topology.cpus if cpu.isolated)
    for cpu in online:
        _write_cpu(files, cpu, online)
    for node in topology.nodes:
        directory = f"{NODE_ROOT}/node{node.id}"
        files[f"{directory}/cpulist"] = format_id_list(node.cpus)
        files[f"{directory}/cpumap"] = format_mask(node.cpus)
        if node.total_memory != UNKNOWN:
            files[f"{directory}/meminfo"] = (
                f"Node {node.id} MemTotal:       {node.total_memory // 1024} kB\n"
                f"Node {node.id} MemFree:        {node.available_memory // 1024} kB\n"
            )
        if node.distances:
            files[f"{directory}/distance"] = " ".join(str(distance) for distance in node.distances.values())
    if topology.nodes:
        files[f"{NODE_ROOT}/online"] = format_id_list(node.id for node in topology.nodes)
    allowed = format_id_list(cpu.id for cpu in topology.cpus if cpu.allowed)
    mems = format_id_list(node.id for node in topology.nodes if node.allowed)
    files["proc/self/status"] = f"Name:\tpython\nCpus_allowed_list:\t{allowed}\nMems_allowed_list:\t{mems}\n"
    return {path: (content + "\n").encode() for path, content in files.items()}


def _write_cpu(files: dict[str, str], cpu: LogicalCPUInfo, online: list[LogicalCPUInfo]) -> None:
    directory = f"{CPU_ROOT}/cpu{cpu.id}"
    siblings = {
        "core_cpus_list": "physical_core",
        "package_cpus_list": "package",
        "die_cpus_list": "die",
        "cluster_cpus_list": "cluster",
        "book_siblings_list": "book",
        "drawer_siblings_list": "drawer",
    }
    for name, level in siblings.items():
        group = getattr(cpu, level)
        if group != UNKNOWN:
            members = [other.id for other in online if getattr(other, level) == group]
            files[f"{directory}/topology/{name}"] = format_id_list(members)
            if name in MASKS:
                files[f"{directory}/topology/{MASKS[name]}"] = format_mask(members)
    files[f"{directory}/topology/core_id"] = str(cpu.physical_core)
    files[f"{directory}/online"] = "1"
    for name, level in (("physical_package_id", "package"), ("die_id", "die"), ("cluster_id", "cluster")):
        if getattr(cpu, level) != UNKNOWN:
            files[f"{directory}/topology/{name}"] = str(getattr(cpu, level))
    if cpu.l3 != UNKNOWN:
        files[f"{directory}/cache/index3/level"] = "3"
        files[f"{directory}/cache/index3/shared_cpu_list"] = format_id_list(
            other.id for other in online if other.l3 == cpu.l3
        )
