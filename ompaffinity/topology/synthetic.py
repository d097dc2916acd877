"""Reader: hwloc's synthetic language, ``"package:2 numa:2 core:8 pu:2"``.

Source: hwloc's documentation, "Synthetic topologies". Read here: levels ``type:count`` from the
outermost to ``pu``, and of their attributes ``(memory=16GB)`` on numa. CPUs are numbered
as hwloc does, depth first, so siblings are neighbours.
"""

from __future__ import annotations

from ompaffinity.errors import TopologyError
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, MemoryNodeInfo, Topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_CPUS = 65536
DEFAULT_NODE_BYTES = 2**30
"""hwloc gives every synthetic node 1 GiB."""

UNITS = {
    "": 1,
    "kB": 2**10,
    "KB": 2**10,
    "MB": 2**20,
    "GB": 2**30,
    "TB": 2**40,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
FIELDS = {
    "package": "package",
    "socket": "package",
    "die": "die",
    "numa": "numa_node",
    "numanode": "numa_node",
    "node": "numa_node",
    "l3": "l3",
    "l3cache": "l3",
    "l3u": "l3",
    "core": "physical_core",
    "pu": "id",
    "group": "",
    "l2": "",
    "l2cache": "",
    "l1": "",
    "l1d": "",
    "l1dcache": "",
}
"""hwloc's level names (any case) and the level that they stand for; those without one only multiply."""


def parse_synthetic(text: str, architecture: str) -> Topology:
    """Return the machine that a synthetic description stands for.

    A description without a numa level has one node, as in hwloc.

    Raises:
        TopologyError: the description is not of this form, or has more than 65536 CPUs.
    """
    levels = [_level(word) for word in text.split()]
    named = [field for field, _, _ in levels if field]
    if not levels or levels[-1][0] != "id":
        raise TopologyError(
            f"the synthetic description {text!r} does not end in pu:N, as in 'package:2 numa:1 core:8 pu:2'"
        )
    for field in named:
        if named.count(field) > 1:
            raise TopologyError(f"the synthetic description {text!r} names one level twice")
    cpus, node_bytes = 1, DEFAULT_NODE_BYTES
    fields: dict[str, int] = {}
    for field, count, memory in levels:
        cpus *= count
        if cpus > MAX_CPUS:
            raise TopologyError(f"the synthetic description {text!r} has more than {MAX_CPUS} CPUs")
        if field:
            fields[field] = cpus
        if field == "numa_node":
            node_bytes = memory
    fields.setdefault("physical_core", cpus)
    fields.setdefault("numa_node", 1)
    rows = tuple(LogicalCPUInfo._make(_row(cpu, cpus, fields)) for cpu in range(cpus))
    nodes = tuple(
        MemoryNodeInfo(
            total_memory=node_bytes,
            available_memory=UNKNOWN,
            id=node,
            cpus=tuple(row.id for row in rows if row.numa_node == node),
            has_memory=node_bytes > 0,
        )
        for node in range(fields["numa_node"])
    )
    return Topology(architecture, "synthetic", "synthetic", rows, nodes)


def _row(cpu: int, cpus: int, fields: dict[str, int]) -> list[Any]:
    """Return the values of a LogicalCPUInfo: every level has consecutive CPUs in equal groups."""
    defaults = LogicalCPUInfo(cpu)._asdict()
    return [cpu * fields[field] // cpus if field in fields else value for field, value in defaults.items()]


def _level(word: str) -> tuple[str, int, int]:
    """Return (field or "", count, bytes of a node) of one ``type:count(attributes)``."""
    body, parenthesis, attributes = word.partition("(")
    name, colon, count = body.partition(":")
    if not colon or name.lower() not in FIELDS:
        known = ", ".join(sorted(FIELDS))
        raise TopologyError(
            f"{word!r} in the synthetic description is not a level such as core:8; the levels are {known}"
        )
    if not (count.isascii() and count.isdigit() and len(count) < 9 and int(count) > 0):
        raise TopologyError(f"{word!r} in the synthetic description needs a count of at least 1, as in {name}:2")
    memory = DEFAULT_NODE_BYTES
    if parenthesis:
        key, _, size = attributes.rstrip(")").partition("=")
        digits = size.rstrip("kKMGTiB")
        if (
            not attributes.endswith(")")
            or key != "memory"
            or not (digits.isascii() and digits.isdigit() and len(digits) < 16)
            or size[len(digits) :] not in UNITS
        ):
            raise TopologyError(f"the attributes of {word!r} are not understood; only (memory=16GB) is")
        memory = int(digits) * UNITS[size[len(digits) :]]
    return FIELDS[name.lower()], int(count), memory
