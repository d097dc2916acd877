"""Reader: hwloc's synthetic descriptions, ``"package:2 numa:2 core:8 pu:2"``.

Source: hwloc's documentation, "Synthetic topologies". Supported are levels ``type:count`` from the
outermost to ``pu``, a node per object as ``[numa]``, and the attributes ``(memory=16GB)`` of numa and
``(indexes=0,2,1,3)`` of pu. Without indexes, CPUs are numbered depth first as in hwloc: siblings are consecutive.
"""

from __future__ import annotations

from typing import NamedTuple

from ompaffinity.errors import IDListError, TopologyError
from ompaffinity.ids import parse_ordered_id_list
from ompaffinity.topology.model import LogicalCPUInfo, MemoryNodeInfo, Topology
from ompaffinity.topology.text import plain_number

MAX_CPUS = 65536
DEFAULT_NODE_BYTES = 2**30
"""The memory of a synthetic node in hwloc: 1 GiB."""

UNITS = {
    "": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
"""As in hwloc: GB is decimal, GiB binary."""
FIELDS = {
    "package": "package",
    "pack": "package",
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
    "l1i": "",
    "l1icache": "",
}
"""hwloc's level names (any case) and the field of each; levels without a field only multiply the CPUs."""


def parse_synthetic(text: str, architecture: str) -> Topology:
    """Return the synthetic machine of a description.

    A description without a numa level has one node, as in hwloc.

    Raises:
        TopologyError: the description is invalid, or has more than 65536 CPUs.
    """
    levels = [_level(word) for word in _words(text)]
    if not levels or levels[-1].field != "id":
        raise TopologyError(f"the synthetic description {text!r} does not end in pu:N; write 'package:2 core:8 pu:2'")
    named = [level.field for level in levels if level.field]
    if len(set(named)) < len(named):
        raise TopologyError(f"the synthetic description {text!r} has a level twice; name each level once")
    cpus, node_bytes = 1, DEFAULT_NODE_BYTES
    fields: dict[str, int] = {}
    for level in levels:
        cpus *= level.per_parent
        if cpus > MAX_CPUS:
            raise TopologyError(f"the synthetic description {text!r} has more than {MAX_CPUS} CPUs")
        if level.field:
            fields[level.field] = cpus
        if level.field == "numa_node":
            node_bytes = level.memory
    fields.setdefault("physical_core", cpus)
    fields.setdefault("numa_node", 1)
    numbers = levels[-1].indexes or list(range(cpus))
    if sorted(numbers) != list(range(cpus)):
        raise TopologyError(f"the indexes of pu in {text!r} must be the numbers 0 to {cpus - 1}, in any order")
    rows = [_row(position, cpus, fields)._replace(id=number) for position, number in enumerate(numbers)]
    rows.sort()
    members: list[list[int]] = [[] for _ in range(fields["numa_node"])]
    for row in rows:
        members[row.numa_node].append(row.id)
    nodes = tuple(
        MemoryNodeInfo(total_memory=node_bytes, id=node, cpus=tuple(cpus_of_node), has_memory=node_bytes > 0)
        for node, cpus_of_node in enumerate(members)
    )
    return Topology(architecture, "synthetic", "synthetic", tuple(rows), nodes)


class _Level(NamedTuple):
    """One level: its field (or ""), the objects per parent, the bytes of a node, and the order of the CPU numbers."""

    field: str
    per_parent: int
    memory: int = DEFAULT_NODE_BYTES
    indexes: list[int] | None = None


def _row(position: int, cpus: int, fields: dict[str, int]) -> LogicalCPUInfo:
    """Return the CPU at a position: the groups of every level are equal runs of consecutive positions."""
    defaults = LogicalCPUInfo()._asdict()
    return LogicalCPUInfo._make(
        position * fields[field] // cpus if field in fields else value for field, value in defaults.items()
    )


def _level(word: str) -> _Level:
    """Read one ``type:count(attribute)``, or ``[numa]``: one node per object of the level before it."""
    attached = word.startswith("[") and word.endswith("]")
    body, parenthesis, attribute = (word[1:-1] if attached else word).partition("(")
    name, colon, count = body.partition(":")
    field = FIELDS.get(name.lower())
    if field is None or bool(colon) == attached or (attached and field != "numa_node"):
        known = ", ".join(sorted(FIELDS))
        raise TopologyError(
            f"{word!r} in the synthetic description is not a level such as core:8; the levels are {known}"
        )
    number = 1 if attached else plain_number(count)
    if not number:
        raise TopologyError(f"{word!r} in the synthetic description has no count of at least 1; write {name}:2")
    level = _Level(field, number)
    for item in _words(attribute.removesuffix(")")):
        level = _with_attribute(level, name, item, word)
    if parenthesis and not attribute.endswith(")"):
        raise TopologyError(f"{word!r} in the synthetic description has no closing parenthesis; add ')'")
    return level


def _with_attribute(level: _Level, name: str, item: str, word: str) -> _Level:
    """Add one ``key=value`` to a level."""
    key, _, value = item.partition("=")
    if key == "size" and name.lower().startswith("l"):
        return level  # The size of a cache is not used.
    if key == "memory" and level.field == "numa_node":
        digits = value.rstrip("kKMGTiB")
        size, unit = plain_number(digits), UNITS.get(value[len(digits) :])
        if size is not None and unit is not None:
            return level._replace(memory=size * unit)
    if key == "indexes" and level.field == "id":
        try:
            return level._replace(indexes=parse_ordered_id_list(value))
        except IDListError as error:
            raise TopologyError(f"the indexes of {word!r} are invalid: {error}") from None
    raise TopologyError(f"{item!r} of {word!r} is unsupported; use (memory=16GB) for numa, (indexes=0,2,1,3) for pu")


def _words(text: str) -> list[str]:
    """Split at spaces outside of parentheses."""
    words, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character.isspace() and depth <= 0:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]
