"""Merge the topologies of one machine from two sources, and report contradictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.messages import SOURCES_DISAGREE, Message
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.topology.model import LogicalCPUInfo, Topology

NAMES = {
    "physical_core": "core",
    "package": "package",
    "l3": "L3",
    "book": "book",
    "drawer": "drawer",
}
"""The levels that both sysfs and lscpu report, with the name of each in messages."""


def completed(topology: Topology, other: Topology) -> Topology:
    """Return `topology` with each level that all its CPUs lack taken from `other`, and a warning if the two differ.

    A level that some CPUs have is not completed, because the two sources number their groups differently.
    """
    known = {cpu.id: cpu for cpu in other.cpus}
    levels = [level for level in NAMES if all(getattr(cpu, level) == UNKNOWN for cpu in topology.cpus)]
    cpus = tuple(
        cpu._replace(**{level: getattr(known[cpu.id], level) for level in levels}) if cpu.id in known else cpu
        for cpu in topology.cpus
    )
    return topology._replace(cpus=cpus, messages=(*topology.messages, *disagreement(topology, other)))


def disagreement(first: Topology, second: Topology) -> list[Message]:
    """Return one warning that names the levels on which two topologies differ; none if they agree."""
    names = [name for level, name in NAMES.items() if _differ(first.cpus, second.cpus, level)]
    nodes = {cpu.id: cpu.numa_node for cpu in second.cpus}
    if any(
        UNKNOWN not in pair and pair[0] != pair[1]
        for pair in ((cpu.numa_node, nodes.get(cpu.id, UNKNOWN)) for cpu in first.cpus)
    ):
        names.append("NUMA node")
    if _online(first) != _online(second):
        names.append("online CPUs")
    if not names:
        return []
    return [
        SOURCES_DISAGREE(
            first=first.source, second=second.source, levels=", ".join(names), example=_example(first, second)
        )
    ]


def _differ(first: Iterable[LogicalCPUInfo], second: Iterable[LogicalCPUInfo], level: str) -> bool:
    """Return whether the CPUs that have this level in both topologies are grouped differently."""
    one = {cpu.id: getattr(cpu, level) for cpu in first}
    two = {cpu.id: getattr(cpu, level) for cpu in second}
    # In equal partitions every group is paired with exactly one group of the other topology.
    pairs = {(one[cpu], two[cpu]) for cpu in one.keys() & two.keys() if UNKNOWN not in (one[cpu], two[cpu])}
    return len(pairs) != len({group for group, _ in pairs}) or len(pairs) != len({group for _, group in pairs})


def _online(topology: Topology) -> set[int]:
    return {cpu.id for cpu in topology.cpus if cpu.online}


def _example(first: Topology, second: Topology) -> str:
    cores = [
        f"{name} has {_cores(topology)} cores" for name, topology in ((first.source, first), (second.source, second))
    ]
    return f"{cores[0]} on CPU {format_id_list(_online(first))}, {cores[1]} on CPU {format_id_list(_online(second))}"


def _cores(topology: Topology) -> int:
    return len({cpu.physical_core for cpu in topology.cpus if cpu.online and cpu.physical_core != UNKNOWN})
