"""Two readings of one machine: what one can add to the other, and where they contradict each other."""

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
"""The levels that both sysfs and lscpu tell, with the word for each."""


def completed(topology: Topology, other: Topology) -> Topology:
    """Return `topology` with every level that it knows of no CPU taken from `other`, and a warning where they differ.

    A level that is known of some CPUs stays as it is: the two number their groups differently.
    """
    known = {cpu.id: cpu for cpu in other.cpus}
    levels = [level for level in NAMES if all(getattr(cpu, level) == UNKNOWN for cpu in topology.cpus)]
    cpus = tuple(
        cpu._replace(**{level: getattr(known[cpu.id], level) for level in levels}) if cpu.id in known else cpu
        for cpu in topology.cpus
    )
    return topology._replace(cpus=cpus, messages=(*topology.messages, *disagreement(topology, other)))


def disagreement(first: Topology, second: Topology) -> list[Message]:
    """Return one warning that names the levels on which two readings differ; none if they agree."""
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
    """Whether the CPUs of which both know this level are grouped differently."""
    one = {cpu.id: getattr(cpu, level) for cpu in first}
    two = {cpu.id: getattr(cpu, level) for cpu in second}
    both = [(one[cpu], two[cpu]) for cpu in one.keys() & two.keys() if UNKNOWN not in (one[cpu], two[cpu])]
    # Equal partitions pair every group with exactly one of the other side.
    pairs = set(both)
    return len(pairs) != len({group for group, _ in pairs}) or len(pairs) != len({group for _, group in pairs})


def _online(topology: Topology) -> set[int]:
    return {cpu.id for cpu in topology.cpus if cpu.online}


def _example(first: Topology, second: Topology) -> str:
    cores = [
        f"{name} sees {_cores(topology)} cores" for name, topology in ((first.source, first), (second.source, second))
    ]
    return f"{cores[0]} on CPU {format_id_list(_online(first))}, {cores[1]} on CPU {format_id_list(_online(second))}"


def _cores(topology: Topology) -> int:
    return len({cpu.physical_core for cpu in topology.cpus if cpu.online and cpu.physical_core != UNKNOWN})
