"""Reader: hwloc's synthetic language, ``"package:2 numa:2 core:8 pu:2"``.

Source: hwloc's documentation, "Synthetic topologies". Read here: levels ``type:count`` from the
outermost to ``pu``, a node per object as ``[numa]``, and of the attributes ``(memory=16GB)`` on numa and
``(indexes=0,2,1,3)`` on pu. Without these, CPUs are numbered as hwloc does, depth first: siblings are neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

from ompaffinity.errors import IDListError, TopologyError
from ompaffinity.ids import parse_ordered_id_list
from ompaffinity.topology.model import LogicalCPUInfo, MemoryNodeInfo, Topology
from ompaffinity.topology.text import plain_number

MAX_CPUS = 65536
DEFAULT_NODE_BYTES = 2**30
"""hwloc gives every synthetic node 1 GiB."""

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
"""hwloc's level names (any case) and the level that they stand for; those without one only multiply."""


def parse_synthetic(text: str, architecture: str) -> Topology:
    """Return the machine that a synthetic description stands for.

    A description without a numa level has one node, as in hwloc.

    Raises:
        TopologyError: the description is not of this form, or has more than 65536 CPUs.
    """
    levels = [_level(word) for word in _words(text)]
    if not levels or levels[-1].field != "id":
        raise TopologyError(f"the synthetic description {text!r} does not end in pu:N, as in 'package:2 core:8 pu:2'")
    named = [level.field for level in levels if level.field]
    if len(set(named)) < len(named):
        raise TopologyError(f"the synthetic description {text!r} names one level twice")
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
        raise TopologyError(f"the indexes of pu in {text!r} are not the numbers 0 to {cpus - 1} in some order")
    rows = [_row(place, cpus, fields)._replace(id=number) for place, number in enumerate(numbers)]
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
    """One level: what it stands for (or ""), how many per parent, bytes of a node, order of the CPU numbers."""

    field: str
    per_parent: int
    memory: int = DEFAULT_NODE_BYTES
    indexes: list[int] | None = None


def _row(place: int, cpus: int, fields: dict[str, int]) -> LogicalCPUInfo:
    """Return the CPU at a place: every level has consecutive places in equal groups."""
    defaults = LogicalCPUInfo()._asdict()
    return LogicalCPUInfo._make(
        place * fields[field] // cpus if field in fields else value for field, value in defaults.items()
    )


def _level(word: str) -> _Level:
    """Read one ``type:count(attribute)``, or ``[numa]``: a node for each object of the level before."""
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
        raise TopologyError(f"{word!r} in the synthetic description needs a count of at least 1, as in {name}:2")
    level = _Level(field, number)
    for item in _words(attribute.removesuffix(")")):
        level = _with_attribute(level, name, item, word)
    if parenthesis and not attribute.endswith(")"):
        raise TopologyError(f"{word!r} in the synthetic description lacks a closing parenthesis")
    return level


def _with_attribute(level: _Level, name: str, item: str, word: str) -> _Level:
    """Add one ``key=value`` to a level."""
    key, _, value = item.partition("=")
    if key == "size" and name.lower().startswith("l"):
        return level  # Of a cache only who shares it matters.
    if key == "memory" and level.field == "numa_node":
        digits = value.rstrip("kKMGTiB")
        size, unit = plain_number(digits), UNITS.get(value[len(digits) :])
        if size is not None and unit is not None:
            return level._replace(memory=size * unit)
    if key == "indexes" and level.field == "id":
        try:
            return level._replace(indexes=parse_ordered_id_list(value))
        except IDListError as error:
            raise TopologyError(f"the indexes of {word!r} are not understood: {error}") from None
    raise TopologyError(f"{item!r} of {word!r} is not understood; numa takes (memory=16GB), pu (indexes=0,2,1,3)")


def _words(text: str) -> list[str]:
    """Split at blanks that do not stand in parentheses."""
    words, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character.isspace() and depth <= 0:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]
