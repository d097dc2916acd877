"""The topology of a machine as immutable records. No I/O.

Group numbers (core, package, ...) are unique in the machine within their level: two CPUs
are on one core if and only if their `physical_core` is equal. An unknown number is `UNKNOWN`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ompaffinity.ids import MAX_ID, format_id_list
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.messages import Message

UNKNOWN = -1
UNKNOWN_ARCHITECTURE = "unknown"
LOCAL_DISTANCE, REMOTE_DISTANCE = 10, 20
"""ACPI 6.5, 5.2.17: 10 is local; 20 is the default of Linux for a remote node without a SLIT."""


class LogicalCPUInfo(NamedTuple):
    """One logical CPU (cpuN in Linux) and its groups.

    Every level is a group number, `UNKNOWN` (-1) where it is not reported; `numa_node` is
    the kernel's node id. `kind` is None on machines with equal cores, else ``"performance"``,
    ``"efficiency"`` or ``"low-power"``; `core_class` then numbers the kinds from the fastest, 0, on, and `speed`
    compares cores of this machine (no unit; 0 is unknown). A `hidden` CPU is missing from a list of online CPUs that is
    known to be incomplete; it counts as offline.
    """

    id: int = UNKNOWN
    physical_core: int = UNKNOWN
    numa_node: int = UNKNOWN
    package: int = UNKNOWN
    die: int = UNKNOWN
    l3: int = UNKNOWN
    cluster: int = UNKNOWN
    book: int = UNKNOWN
    drawer: int = UNKNOWN
    kind: str | None = None
    online: bool = True
    allowed: bool = True
    isolated: bool = False
    core_class: int = UNKNOWN
    speed: float = 0.0
    hidden: bool = False

    @staticmethod
    def json_decoder(row: dict[str, Any]) -> LogicalCPUInfo | dict[str, Any]:
        """Convert a CPU row of ``lscpu -J -e`` to a LogicalCPUInfo; an `object_hook` for `json.loads`.

        Other JSON objects are returned unchanged. A text that is not a number becomes `UNKNOWN`.
        """
        if not {"cpu", "core", "node"} <= row.keys():
            return row
        return LogicalCPUInfo(
            id=lscpu_number(row["cpu"]),
            physical_core=lscpu_number(row["core"]),
            numa_node=lscpu_number(row["node"]),
            package=lscpu_number(row.get("socket")),
            book=lscpu_number(row.get("book")),
            drawer=lscpu_number(row.get("drawer")),
            online=row.get("online") not in (False, "no"),
        )


def lscpu_number(value: object) -> int:
    """Return a cell of the lscpu output (2.30 to 2.42: number, text, ``"-"``, null) as a number or `UNKNOWN`."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 8:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID:
        return value
    return UNKNOWN


class MemoryNodeInfo(NamedTuple):
    """One NUMA node: its memory in bytes (-1 = unknown), CPUs and distances.

    `cpus` holds online CPUs, ascending. `has_memory` is None where unknown.
    `distances` maps node ids to ACPI SLIT distances (10 = local, unitless), None where unknown.
    `device_memory`: the node is the memory of a GPU. `interleave_weight` is the number of pages in turn under weighted
    interleave (/sys/kernel/mm/mempolicy/weighted_interleave), -1 where the kernel has none.
    """

    total_memory: int = UNKNOWN
    available_memory: int = UNKNOWN
    id: int = 0
    cpus: tuple[int, ...] = ()
    has_memory: bool | None = None
    allowed: bool = True
    distances: Mapping[int, int] | None = None
    device_memory: bool = False
    interleave_weight: int = UNKNOWN


class Limits(NamedTuple):
    """The limits of this process, each None where there is no such limit or it is unknown.

    `affinity`, `cpuset_cpus` and `cpuset_nodes` are ids, ascending; `cpu_quota` is in CPUs;
    memory is in bytes. `unknown` names the control group controllers (cpuset, cpu, memory) whose limits cannot be seen.
    """

    affinity: tuple[int, ...] | None = None
    cpuset_cpus: tuple[int, ...] | None = None
    cpuset_nodes: tuple[int, ...] | None = None
    cpu_quota: float | None = None
    memory_limit_bytes: int | None = None
    memory_usage_bytes: int | None = None
    unknown: tuple[str, ...] = ()


class _TopologyFields(NamedTuple):
    architecture: str
    source: str
    machine: str
    cpus: tuple[LogicalCPUInfo, ...]
    nodes: tuple[MemoryNodeInfo, ...] = ()
    limits: Limits = Limits()
    messages: tuple[Message, ...] = ()
    total_memory: int = UNKNOWN
    live: bool = False
    l3_bytes: tuple[int, ...] = ()


class Topology(_TopologyFields):
    """A machine and the limits of this process: every present CPU and every node, ascending.

    `architecture` is the name in ``uname -m``, ``"unknown"`` if not recorded;
    `source` names the reader; `machine` is a label, never a path. `total_memory` is in bytes, and set
    only for a machine without nodes. `live`: it is the machine that this process runs on; False for one that is
    recorded or synthetic. It is not part of the document, so a capture is never live. `l3_bytes` are the sizes of the
    L3 caches by their group numbers, -1 where unknown; empty where the source does not report them.
    """

    @cached_property
    def _cpu_by_id(self) -> dict[int, LogicalCPUInfo]:
        return {cpu.id: cpu for cpu in self.cpus}

    @cached_property
    def _node_by_id(self) -> dict[int, MemoryNodeInfo]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def allowed_cpus(self) -> tuple[int, ...]:
        """Ids of the CPUs that this process may run on, ascending."""
        return tuple(cpu.id for cpu in self.cpus if cpu.allowed)

    @cached_property
    def equally_far(self) -> bool:
        """Whether all distances between different nodes are equal."""
        remote = {
            distance
            for node in self.nodes
            for other, distance in (node.distances or {}).items()
            if other != node.id and other in self._node_by_id
        }
        complete = all(len(node.distances or ()) >= len(self.nodes) for node in self.nodes)
        return not remote or (complete and len(remote) == 1)

    @cached_property
    def _home_nodes(self) -> dict[int, int]:
        """The lowest of the nodes that are one: they list the same CPUs, or stand at the local distance (numa=fake)."""
        homes = {node.id: node.id for node in self.nodes}
        by_cpus: dict[tuple[int, ...], int] = {}
        for node in self.nodes:
            alike = [by_cpus.setdefault(node.cpus, node.id)] if node.cpus else []
            alike += [
                other
                for other, distance in (node.distances or {}).items()
                if distance == LOCAL_DISTANCE and self.distance(other, node.id) == LOCAL_DISTANCE and other in homes
            ]
            members = {homes[other] for other in (node.id, *alike)}
            if len(members) > 1:
                homes = {number: min(members) if home in members else home for number, home in homes.items()}
        return homes

    def home_node(self, node: int) -> int:
        """Return the lowest of the nodes that are one with this node; the number itself for one that is not known."""
        return self._home_nodes.get(node, node)

    def home(self, cpu: int) -> int:
        """Return `home_node` of a CPU's node, `UNKNOWN` where it has none."""
        return self.home_node(self._cpu_by_id[cpu].numa_node)

    def cpu(self, number: int) -> LogicalCPUInfo:
        """Return the CPU with this id. Raises KeyError if it is not present."""
        return self._cpu_by_id[number]

    def node(self, number: int) -> MemoryNodeInfo:
        """Return the node with this id. Raises KeyError if there is none."""
        return self._node_by_id[number]

    def distance(self, start: int, end: int) -> int:
        """Return the SLIT distance between two nodes (10 = local), 20 where it is unknown."""
        node = self._node_by_id.get(start)
        if node is not None and node.distances and end in node.distances:
            return node.distances[end]
        return LOCAL_DISTANCE if start == end else REMOTE_DISTANCE

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.topology/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.topology/1",
            "architecture": self.architecture,
            "source": self.source,
            "machine": self.machine,
            "cpus": [_cpu_document(cpu) for cpu in self.cpus],
            "nodes": [_node_document(node) for node in self.nodes],
            "total_bytes": None if self.total_memory == UNKNOWN else self.total_memory,
            "l3_bytes": [None if size == UNKNOWN else size for size in self.l3_bytes],
            "limits": _limits_document(self.limits),
            "devices": [],
            "warnings": [message._asdict() for message in self.messages],
        }


_CPU_KEYS = (
    "cpu",
    "core",
    "package",
    "die",
    "l3",
    "cluster",
    "book",
    "drawer",
    "node",
    "kind",
    "online",
    "allowed",
    "isolated",
    "core_class",
    "speed",
    "hidden",
)


def _cpu_document(cpu: LogicalCPUInfo) -> dict[str, Any]:
    numbers = (
        cpu.id,
        cpu.physical_core,
        cpu.package,
        cpu.die,
        cpu.l3,
        cpu.cluster,
        cpu.book,
        cpu.drawer,
        cpu.numa_node,
    )
    values = [None if number == UNKNOWN else number for number in numbers]
    core_class = None if cpu.core_class == UNKNOWN else cpu.core_class
    fields = (cpu.kind, cpu.online, cpu.allowed, cpu.isolated, core_class, cpu.speed or None, cpu.hidden)
    return dict(zip(_CPU_KEYS, (*values, *fields)))


def _node_document(node: MemoryNodeInfo) -> dict[str, Any]:
    return {
        "node": node.id,
        "cpus": format_id_list(node.cpus),
        "total_bytes": None if node.total_memory == UNKNOWN else node.total_memory,
        "available_bytes": None if node.available_memory == UNKNOWN else node.available_memory,
        "has_memory": node.has_memory,
        "allowed": node.allowed,
        "distances": {str(other): distance for other, distance in (node.distances or {}).items()},
        "device_memory": node.device_memory,
        "interleave_weight": None if node.interleave_weight == UNKNOWN else node.interleave_weight,
    }


def _limits_document(limits: Limits) -> dict[str, Any]:
    values = limits._asdict() | {"unknown": [*limits.unknown]}
    for name in ("affinity", "cpuset_cpus", "cpuset_nodes"):
        values[name] = None if values[name] is None else format_id_list(values[name])
    return values
