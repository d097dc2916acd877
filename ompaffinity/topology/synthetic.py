"""Reader: hwloc's synthetic descriptions, ``"package:2 numa:2 core:8 pu:2"``, as users and ``lstopo`` write them.

Source: hwloc's documentation, "Synthetic topologies", and what ``lstopo --of synthetic`` exports. A level is
``type:count``, from the outermost to ``pu``; the last one may be a count alone, or all of them may. Nodes are a level,
or are attached to the objects of a level as ``[numa]``, also several. Attributes are ``(memory=16GB)`` of nodes,
``(size=32MB)`` of an L3, and ``(indexes=...)`` of pu and nodes: a list, loops such as ``2*8:1*2``, or types such as
``core:pu``. Without indexes, CPUs are numbered depth first as in hwloc: siblings are consecutive.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, TopologyError
from ompaffinity.ids import parse_ordered_id_list
from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, MemoryNodeInfo, Topology
from ompaffinity.topology.text import plain_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

MAX_CPUS = 65536
DEFAULT_NODE_BYTES = 2**30
"""The memory of a synthetic node in hwloc: 1 GiB."""

UNITS = {
    "": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
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
    "core": "physical_core",
    "pu": "id",
}
"""hwloc's level names (any case) and the field of each."""
WITHOUT_FIELD = re.compile(r"group\d*|tile|module|l[1245]([udi]?cache|[udi])?|l3[udi]?cache|l3[udi]")
"""Other levels: they only multiply the CPUs. A unified L3 has the field of an L3."""
CACHE_SIZE = "size"
IGNORED = (CACHE_SIZE, "memorysidecachesize")
"""Attributes of which other values are not used, such as the sizes of other caches."""


class _Level(NamedTuple):
    """One level: its name, its field (or ""), the objects per parent and in all, and the indexes of its objects.

    `attached` are the nodes attached to each of its objects, in bytes. `cache` are the bytes of a cache.
    """

    name: str
    field: str
    per_parent: int
    total: int = 1
    memory: int = DEFAULT_NODE_BYTES
    indexes: str = ""
    attached: tuple[int, ...] = ()
    cache: int = UNKNOWN


def parse_synthetic(text: str, architecture: str) -> Topology:
    """Return the synthetic machine of a description.

    A description without a node has one node, as in hwloc.

    Raises:
        TopologyError: the description is invalid, or has more than 65536 CPUs.
    """
    levels, node_indexes = _levels(text)
    cpus = levels[-1].total
    numbers = _numbers(levels[-1].indexes, cpus, levels, text) if levels[-1].indexes else range(cpus)
    fields = {level.field: level.total for level in levels if level.field}
    fields.setdefault("physical_core", cpus)
    fields.pop("numa_node", None)
    owners, sizes = _nodes(levels, node_indexes, text)
    rows = [
        _row(position, cpus, fields)._replace(id=number, numa_node=owners[position * len(owners) // cpus])
        for position, number in enumerate(numbers)
    ]
    rows.sort()
    members: dict[int, list[int]] = {node: [] for node in sizes}
    for row in rows:
        members[row.numa_node].append(row.id)
    nodes = tuple(
        MemoryNodeInfo(total_memory=sizes[node], id=node, cpus=tuple(members[node]), has_memory=sizes[node] > 0)
        for node in sorted(sizes)
    )
    caches = (level for level in levels if level.field == "l3" and level.cache != UNKNOWN)
    l3_bytes = tuple(level.cache for level in caches for _ in range(level.total))
    return Topology(architecture, "synthetic", "synthetic", tuple(rows), nodes, l3_bytes=l3_bytes)


def _row(position: int, cpus: int, fields: dict[str, int]) -> LogicalCPUInfo:
    """Return the CPU at a position: the groups of every level are equal runs of consecutive positions."""
    groups: dict[str, Any] = {field: position * count // cpus for field, count in fields.items() if field != "id"}
    return LogicalCPUInfo(**groups)


def _levels(text: str) -> tuple[list[_Level], str]:
    """Return the levels, the machine first, and the indexes of the attached nodes."""
    levels = [_Level("machine", "", 1)]
    node_indexes = ""
    for word in _words(text):
        if word.startswith("("):
            if len(levels) > 1 or levels[0].attached:
                raise TopologyError(
                    f"{word!r} in the synthetic description follows no level; attach it, as in core:8(...)"
                )
        elif word.startswith("["):
            node = _attached(word)
            levels[-1] = levels[-1]._replace(attached=(*levels[-1].attached, node.memory))
            node_indexes = node.indexes or node_indexes
        else:
            level = _level(word)
            total = levels[-1].total * level.per_parent
            if total > MAX_CPUS:
                raise TopologyError(f"the synthetic description {text[:200]!r} has more than {MAX_CPUS} CPUs")
            levels.append(level._replace(total=total))
    return _named(levels, text), node_indexes


def _named(levels: list[_Level], text: str) -> list[_Level]:
    """Return the levels with types for those that are a count alone."""
    shown = text[:200]
    if len(levels) > 1 and not levels[-1].name:
        levels = [*levels[:-1], levels[-1]._replace(name="pu", field="id")]
    if len(levels) < 2 or levels[-1].field != "id" or levels[-1].attached:
        raise TopologyError(f"the synthetic description {shown!r} does not end in pu:N; write 'package:2 core:8 pu:2'")
    bare = [place for place, level in enumerate(levels) if not level.name]
    if bare:
        if len(bare) != len(levels) - 2:
            raise TopologyError(f"the synthetic description {shown!r} names some levels only; name all, or none")
        has_nodes = any(level.attached for level in levels)
        for place, field in zip(bare, _fields_of_bare(len(bare), has_nodes=has_nodes)):
            levels[place] = levels[place]._replace(name="group", field=field)
    named = [level.field for level in levels if level.field]
    if len(set(named)) < len(named):
        raise TopologyError(f"the synthetic description {shown!r} has a level twice; name each level once")
    if "numa_node" in named and any(level.attached for level in levels):
        raise TopologyError(f"the synthetic description {shown!r} has nodes as a level and attached ones; use one form")
    return levels


def _fields_of_bare(count: int, *, has_nodes: bool) -> list[str]:
    """Return the fields of levels that are counts alone, as hwloc names them: groups, package, node, caches, core."""
    left = count
    wanted = []
    for field, needed in (("numa_node", not has_nodes), ("package", True), ("physical_core", True)):
        if needed and left:
            wanted.append(field)
            left -= 1
    caches = min(left, 4)
    l3_and_others = ["l3" if caches >= 3 and place == 0 else "" for place in range(caches)]
    groups = [""] * (left - caches)
    inner = [field for field in ("package", "numa_node") if field in wanted]
    return [*groups, *inner, *l3_and_others, *(["physical_core"] if "physical_core" in wanted else [])]


def _nodes(levels: Sequence[_Level], indexes: str, text: str) -> tuple[list[int], dict[int, int]]:
    """Return the node of each run of CPUs, runs of equal length in order, and {node: bytes}.

    Of several nodes at the same CPUs the first one has them, as in a kernel's list: the others are memory alone.
    """
    level = next((level for level in levels if level.field == "numa_node"), None)
    if level is not None:
        numbers = _numbers(level.indexes, level.total, levels, text) if level.indexes else range(level.total)
        return list(numbers), dict.fromkeys(numbers, level.memory)
    places = [place for place, found in enumerate(levels) if found.attached]
    if not places:
        return [0], {0: DEFAULT_NODE_BYTES}
    total = sum(levels[place].total * len(levels[place].attached) for place in places)
    if total > MAX_CPUS:
        raise TopologyError(f"the synthetic description {text[:200]!r} has more than {MAX_CPUS} nodes")
    numbers = _numbers(indexes, total, levels, text) if indexes else range(total)
    sizes: dict[int, int] = {}
    owners: list[int] = []
    for number, (place, position) in zip(numbers, _attached_in_order(levels, 0, places[-1])):
        sizes[number] = levels[place].attached[position]
        if place == places[-1] and position == 0:
            owners.append(number)
    return owners, sizes


def _attached_in_order(levels: Sequence[_Level], place: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield (level, position in its list) of every attached node: those of the inner objects first."""
    if place < last:
        for _ in range(levels[place + 1].per_parent):
            yield from _attached_in_order(levels, place + 1, last)
    for position in range(len(levels[place].attached)):
        yield place, position


def _numbers(indexes: str, total: int, levels: Sequence[_Level], text: str) -> list[int]:
    """Return the number of each object in depth-first order."""
    if re.fullmatch(r"[\d,-]+", indexes):
        try:
            numbers = parse_ordered_id_list(indexes)
        except IDListError as error:
            raise TopologyError(f"the indexes {indexes[:60]!r} are invalid: {error}") from None
    else:
        loops = _loops(indexes, total, levels)
        missing, rest = divmod(total, prod(count for _, count in loops))
        if not rest and missing > 1 and missing == min(step for step, _ in loops):
            # The innermost loop may be left out.
            loops.append((1, missing))
        numbers, factor = [0] * total, 1
        for step, count in loops:
            numbers = [number + place // step % count * factor for place, number in enumerate(numbers)]
            factor *= count
    if sorted(numbers) != list(range(total)):
        raise TopologyError(
            f"the indexes {indexes[:60]!r} of {text[:200]!r} must give the numbers 0 to {total - 1} once each"
        )
    return numbers


def _loops(indexes: str, total: int, levels: Sequence[_Level]) -> list[tuple[int, int]]:
    """Return (step, count) of each loop of ``2*8:1*2``, or of the levels in ``core:pu``."""
    words = indexes.split(":")
    if len(words) > len(levels) + 1:
        raise TopologyError(f"the indexes {indexes[:60]!r} have more loops than there are levels")
    loops = []
    for word in words:
        match = re.fullmatch(r"(\d{1,7})\*(\d{1,7})", word)
        if match is not None:
            step, count = int(match[1]), int(match[2])
        else:
            step, count = _loop_of_level(word, words, total, levels)
        if not (0 < step <= total and 0 < count <= total):
            raise TopologyError(f"the loop {word[:40]!r} of indexes is no step and count of 1 to {total}, such as 2*8")
        loops.append((step, count))
    return loops


def _loop_of_level(word: str, words: Sequence[str], total: int, levels: Sequence[_Level]) -> tuple[int, int]:
    places = {name: place for name in words for place in [_place_of(name, levels)] if place is not None}
    place = places.get(word)
    if place is None or len(places) < len(words):
        raise TopologyError(f"the loop {word[:40]!r} of indexes is neither step*count nor a level of the description")
    outer = max((other for other in places.values() if other < place), default=0)
    return total // max(1, levels[place].total), levels[place].total // levels[outer].total


def _place_of(name: str, levels: Sequence[_Level]) -> int | None:
    field = FIELDS.get(name.lower())
    for place, level in enumerate(levels):
        if level.name == name.lower() or (field and level.field == field):
            return place
    return None


def _attached(word: str) -> _Level:
    """Read ``[numa(attributes)]``."""
    if not word.endswith("]"):
        raise TopologyError(f"{word!r} in the synthetic description has no closing bracket; add ']'")
    name, parenthesis, attributes = word[1:-1].partition("(")
    if FIELDS.get(name.lower()) != "numa_node":
        raise TopologyError(f"{word!r} in the synthetic description attaches no node; write [numa]")
    return _with_attributes(_Level("numa", "numa_node", 1), parenthesis + attributes, word)


def _level(word: str) -> _Level:
    """Read one ``type:count(attributes)``, or a count alone."""
    body, parenthesis, attributes = word.partition("(")
    name, colon, count = body.rpartition(":")
    lower = name.lower()
    field = FIELDS.get(lower.replace("l3u", "l3"), "")
    if (colon or not count.isdecimal()) and not field and not WITHOUT_FIELD.fullmatch(lower):
        known = ", ".join(sorted({*FIELDS, "group", "l1", "l2", "l4"}))
        raise TopologyError(
            f"{word!r} in the synthetic description is not a level such as core:8; the levels are {known}"
        )
    number = plain_number(count)
    if not number:
        raise TopologyError(f"{word!r} in the synthetic description has no count of at least 1; write {name}:2")
    return _with_attributes(_Level(lower, field, number), parenthesis + attributes, word)


def _with_attributes(level: _Level, text: str, word: str) -> _Level:
    """Add the attributes ``(key=value key=value)`` to a level."""
    if text and not text.endswith(")"):
        raise TopologyError(f"{word!r} in the synthetic description has no closing parenthesis; add ')'")
    for item in text[1:-1].split():
        key, _, value = item.partition("=")
        digits = value.rstrip("kKMGTiBmgtbI")
        size, unit = plain_number(digits), UNITS.get(value[len(digits) :].lower())
        if key == "indexes" and value:
            level = level._replace(indexes=value)
        elif key == "memory" and size is not None and unit is not None:
            level = level._replace(memory=size * unit)
        elif key == CACHE_SIZE and size is not None and unit is not None:
            level = level._replace(cache=size * unit)
        elif key not in IGNORED:
            raise TopologyError(
                f"{item!r} of {word!r} is unsupported; use (memory=16GB) for numa, (indexes=0,2,1,3) for pu and numa"
            )
    return level


def _words(text: str) -> list[str]:
    """Split at spaces outside of parentheses and brackets, and after a bracket."""
    words, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character.isspace() and depth <= 0:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]
