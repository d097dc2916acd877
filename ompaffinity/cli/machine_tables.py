"""The tables of ``topology`` and ``devices``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.cli.text import format_bytes, ids_text, print_line, print_messages, print_table
from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.devices.model import GPUList
    from ompaffinity.topology.model import LogicalCPUInfo, Topology


def print_topology(topology: Topology) -> None:
    """Print the caches with their CPUs, the NUMA nodes, and the limits of this process."""
    print_machine(topology)
    print_line()
    groups = [
        (*map(_number, numbers), kind or "", str(_cores(members)), ids_text(cpu.id for cpu in members))
        for (*numbers, kind), members in _by_cache(topology).items()
    ]
    headings = ("package", "node", "L3", "kind", "cores", "CPUs")
    print_table(headings, groups, right=("package", "node", "L3", "cores"))
    if topology.nodes:
        print_line()
        nodes = [
            (
                str(node.id),
                ids_text(node.cpus, "none"),
                format_bytes(node.total_memory),
                format_bytes(node.available_memory),
                "yes" if node.allowed else "no",
                " ".join(map(str, (node.distances or {}).values())) or "unknown",
            )
            for node in topology.nodes
        ]
        headings = ("node", "CPUs", "memory", "available", "allowed", "distances")
        print_table(headings, nodes, right=("node", "memory", "available"))
    print_line()
    for name, value in _limit_lines(topology):
        print_line((f"{name}: ", "bold"), value)
    print_messages(topology.messages)


def print_devices(found: GPUList, topology: Topology) -> None:
    """Print one row per GPU, with the answer of every source about its node."""
    if not found.gpus:
        print_line("no GPU is visible to this process")
    else:
        rows = []
        for device in found.gpus:
            answers = "; ".join(
                f"{answer.source} {'?' if answer.nodes is None else format_id_list(answer.nodes)}"
                for answer in device.answers
            )
            row = (
                str(device.number),
                device.name or device.vendor,
                device.address,
                format_id_list(device.nodes) or "?",
                ids_text(device.near_cpus(topology), "unknown"),
                device.source or "unknown",
                answers or "none",
            )
            rows.append(row)
        print_table(("GPU", "name", "PCI address", "node", "near CPUs", "source", "all sources"), rows, right=("GPU",))
    for vendor, state in found.libraries.items():
        if state != "ok" and any(device.vendor == vendor for device in found.gpus):
            print_line((f"note: the driver library of {vendor} is not available: {state}", "note"))
    print_messages(found.messages)


def print_machine(topology: Topology) -> None:
    """Print the name of a machine, its source, and what it has."""
    online = [cpu for cpu in topology.cpus if cpu.online]
    counts = {
        "package": len({cpu.package for cpu in online} - {UNKNOWN}),
        "NUMA node": len(topology.nodes),
        "core": _cores(online),
    }
    parts = [counted(count, word) for word, count in counts.items() if count]
    parts.append(f"{counted(len(online), 'CPU')} ({len(topology.allowed_cpus)} allowed)")
    print_line(
        (topology.machine, "bold"),
        f" ({topology.architecture}, read from {topology.source}): {', '.join(parts)}",
    )


def _cores(cpus: Iterable[LogicalCPUInfo]) -> int:
    """Return the number of cores; a CPU with an unknown core is a core of its own."""
    cores = [cpu.physical_core for cpu in cpus]
    return len({*cores} - {UNKNOWN}) + cores.count(UNKNOWN)


def _by_cache(topology: Topology) -> dict[tuple[int, int, int, str | None], list[LogicalCPUInfo]]:
    groups: dict[tuple[int, int, int, str | None], list[LogicalCPUInfo]] = {}
    for cpu in topology.cpus:
        if cpu.online:
            groups.setdefault((cpu.package, cpu.numa_node, cpu.l3, cpu.kind), []).append(cpu)
    return groups


def _limit_lines(topology: Topology) -> Iterable[tuple[str, str]]:
    limits = topology.limits
    present = [cpu.id for cpu in topology.cpus]
    offline = [cpu.id for cpu in topology.cpus if not cpu.online]
    isolated = [cpu.id for cpu in topology.cpus if cpu.isolated]
    yield "allowed CPUs", f"{format_id_list(topology.allowed_cpus)} of {format_id_list(present)}"
    for name, ids in (
        ("offline CPUs", offline),
        ("isolated CPUs", isolated),
        ("allowed memory nodes", limits.cpuset_nodes or ()),
    ):
        if ids:
            yield name, format_id_list(ids)
    if limits.cpu_quota is not None:
        yield "CPU quota", f"{limits.cpu_quota:g} CPUs"
    if limits.memory_limit_bytes is not None:
        yield (
            "memory limit",
            f"{format_bytes(limits.memory_limit_bytes)}, {format_bytes(limits.memory_usage_bytes)} in use",
        )


def _number(number: int) -> str:
    return "" if number == UNKNOWN else str(number)
