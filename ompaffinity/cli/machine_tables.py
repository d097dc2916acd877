"""The tables of ``topology`` and ``devices``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ompaffinity.cli.console import format_bytes, ids_cell, new_console, new_table, print_messages
from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.devices.model import GPUList
    from ompaffinity.topology.model import LogicalCPUInfo, Topology


def print_topology(topology: Topology) -> None:
    """Print the caches with their CPUs, the NUMA nodes, and the limits of this process."""
    console = new_console()
    console.print(machine_line(topology))
    console.print()
    groups = new_table("package", "node", "L3", "kind", "cores", "CPUs", right=("package", "node", "L3", "cores"))
    for key, members in _by_cache(topology).items():
        *numbers, kind = key
        cpus = ids_cell(cpu.id for cpu in members)
        groups.add_row(*map(_number, numbers), kind or "", str(_cores(members)), cpus)
    console.print(groups)
    if topology.nodes:
        console.print()
        nodes = new_table(
            "node", "CPUs", "memory", "available", "allowed", "distances", right=("node", "memory", "available")
        )
        for node in topology.nodes:
            nodes.add_row(
                str(node.id),
                ids_cell(node.cpus, "none"),
                format_bytes(node.total_memory),
                format_bytes(node.available_memory),
                "yes" if node.allowed else "no",
                " ".join(map(str, (node.distances or {}).values())) or "unknown",
            )
        console.print(nodes)
    console.print()
    for name, value in _limit_lines(topology):
        console.print(Text.assemble((f"{name}: ", "bold"), value))
    print_messages(topology.messages)


def print_devices(found: GPUList, topology: Topology) -> None:
    """Print one row per GPU, with the answer of every source about its node."""
    console = new_console()
    if not found.gpus:
        console.print("no GPU is visible to this process")
    else:
        table = new_table("GPU", "name", "PCI address", "node", "near CPUs", "source", "all sources", right=("GPU",))
        for device in found.gpus:
            answers = "; ".join(
                f"{answer.source} {'?' if answer.nodes is None else format_id_list(answer.nodes)}"
                for answer in device.answers
            )
            table.add_row(
                str(device.number),
                device.name or device.vendor,
                device.address,
                format_id_list(device.nodes) or "?",
                ids_cell(device.near_cpus(topology), "unknown"),
                device.source or "unknown",
                answers or "none",
            )
        console.print(table)
    for vendor, state in found.libraries.items():
        if state != "ok" and any(device.vendor == vendor for device in found.gpus):
            console.print(Text(f"note: the driver library of {vendor} is not available: {state}", style="cyan"))
    print_messages(found.messages)


def machine_line(topology: Topology) -> Text:
    """Return the name of a machine, its source, and what it has."""
    online = [cpu for cpu in topology.cpus if cpu.online]
    counts = {
        "package": len({cpu.package for cpu in online} - {UNKNOWN}),
        "NUMA node": len(topology.nodes),
        "core": _cores(online),
    }
    parts = [counted(count, word) for word, count in counts.items() if count]
    parts.append(f"{counted(len(online), 'CPU')} ({len(topology.allowed_cpus)} allowed)")
    return Text.assemble(
        (topology.machine, "bold"),
        f" ({topology.architecture}, read from {topology.source}): {', '.join(parts)}",
    )


def _cores(cpus: Iterable[LogicalCPUInfo]) -> int:
    return len({cpu.physical_core if cpu.physical_core != UNKNOWN else UNKNOWN - 1 - cpu.id for cpu in cpus})


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
