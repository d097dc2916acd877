"""Merge the topologies of one machine from two sources, and report contradictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.ids import format_id_list
from ompaffinity.messages import SOURCES_DISAGREE, Message
from ompaffinity.topology.model import UNKNOWN, Topology
from ompaffinity.topology.sysfs import allowed_cpus, read_sysfs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.topology.model import LogicalCPUInfo
    from ompaffinity.topology.tree import Tree

NAMES = {
    "physical_core": "core",
    "package": "package",
    "l3": "L3",
    "book": "book",
    "drawer": "drawer",
}
"""The levels that both sysfs and lscpu report, with the name of each in messages."""


def read_by_lscpu(
    tree: Tree, architecture: str, machine: str, affinity: tuple[int, ...] | None, root: str | None = None
) -> Topology:
    """Return what lscpu reports; dies, clusters, kinds and isolated CPUs, which it does not have, come from sysfs.

    lscpu reads this machine, or the directory `root` with the files of `tree`.

    Raises:
        TopologyError: lscpu cannot be used.
    """
    from ompaffinity.topology.limits import read_limits
    from ompaffinity.topology.lscpu import read_lscpu
    from ompaffinity.topology.nodes import read_nodes, whole_memory

    rows = read_lscpu(architecture, root)
    limits = read_limits(tree, affinity)
    online = [row.id for row in rows if row.online]
    allowed = allowed_cpus(online, limits)
    try:
        by_sysfs = read_sysfs(tree, architecture=architecture, machine=machine, affinity=affinity)
    except TopologyError:
        by_sysfs = Topology(architecture, "sysfs", machine, rows)
    known = {cpu.id: cpu for cpu in by_sysfs.cpus}
    cpus = tuple(_added(row, known.get(row.id, row))._replace(allowed=row.id in allowed) for row in rows)
    nodes = read_nodes(tree, online, limits)
    topology = Topology(architecture, "lscpu", machine, cpus, nodes, limits, (), whole_memory(tree, nodes))
    return topology._replace(messages=tuple(disagreement(topology, by_sysfs)))


def _added(row: LogicalCPUInfo, other: LogicalCPUInfo) -> LogicalCPUInfo:
    fields = ("die", "cluster", "kind", "core_class", "speed", "isolated")
    return row._replace(**{name: getattr(other, name) for name in fields})


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
