"""Reader: hwloc's XML exports, format 2.x and 3.0 (``lstopo machine.xml``).

Source: hwloc's documentation, "Importing and exporting topologies from/to XML files", and
hwloc2.dtd. Isolated CPUs and the CPU quota are unknown, because hwloc does not record them. hwloc
records a memory node without CPUs with the CPUs near it; CPUs of several nodes are assigned to the first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from ompaffinity.errors import IDListError, TopologyError
from ompaffinity.ids import MAX_ID, parse_mask
from ompaffinity.messages import HWLOC_NODES_DOUBTFUL, Message
from ompaffinity.records import NamedTuple
from ompaffinity.topology.kinds import (
    EFFICIENCY,
    LOW_POWER,
    PERFORMANCE,
    UNIFORM,
    CoreKind,
    completed_kinds,
    kinds_by_speed,
    named_kinds,
)
from ompaffinity.topology.model import UNKNOWN, UNKNOWN_ARCHITECTURE, Limits, LogicalCPUInfo, MemoryNodeInfo, Topology
from ompaffinity.topology.nodes import MAX_LISTED
from ompaffinity.topology.text import plain_number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any
    from xml.etree.ElementTree import Element

LEVELS = {"Package": "package", "Die": "die", "L3Cache": "l3", "Core": "physical_core"}
GROUP_LEVELS = {"Book": "book", "Drawer": "drawer", "Cluster": "cluster"}
"""Levels that hwloc exports as Group objects of this subtype."""
X86_VENDORS = {"GenuineIntel", "AuthenticAMD", "HygonGenuine", "CentaurHauls", "  Shanghai  "}
"""Vendor names from CPUID; exports made from CPUID do not name the architecture."""
MAX_TAG_BYTES = 2**16
"""Of one tag with its attributes, which the parser holds as a whole. Those of hwloc are shorter by far."""
LONG_TAG = re.compile(rb"<[^<>]{%d}" % MAX_TAG_BYTES)
INTEL_KINDS = {"IntelCore": PERFORMANCE, "IntelAtom": EFFICIENCY, "IntelLowPower": LOW_POWER}


NO_LEVELS: dict[str, Any] = {}
"""The levels of an offline CPU."""


class Export(NamedTuple):
    """An hwloc export, parsed: the topology element, and the object of the Machine in it."""

    root: Element
    top: Element


def parse_hwloc(text: bytes, machine: str) -> Topology:
    """Return the machine in an hwloc XML export.

    Raises:
        TopologyError: `text` is not such an export, defines entities, or describes no CPU.
    """
    return exported_topology(parsed_export(text), machine)


def exported_topology(export: Export, machine: str) -> Topology:
    """Return the machine in an export.

    Raises:
        TopologyError: it describes no CPU, or contradicts itself.
    """
    root, top = export
    levels = _levels(top)
    if not levels:
        raise TopologyError("this hwloc topology has no object of type PU; export it again with all CPUs")
    allowed = cpu_set(top, "allowed_cpuset")
    missing = set(cpu_set(top, "complete_cpuset") or ()) - levels.keys()
    # An export from inside a control group lacks the CPUs that are not allowed there, online or not.
    disallowed = missing if _group_of(top) not in ("", "/") else set()
    nodes = _nodes(root, top, levels)
    node_of = {cpu: node.id for node in nodes for cpu in node.cpus}
    kinds = _kinds(root, levels)
    cpus = tuple(
        LogicalCPUInfo(
            cpu,
            numa_node=node_of.get(cpu, UNKNOWN),
            **kinds.get(cpu, UNIFORM)._asdict(),
            online=cpu in levels or cpu in disallowed,
            allowed=cpu in levels and (allowed is None or cpu in allowed),
            **levels.get(cpu, NO_LEVELS),
        )
        for cpu in sorted(levels.keys() | missing)
    )
    info = {item.get("name"): item.get("value") for item in (*top.findall("info"), *root.findall("info"))}
    limits = Limits(
        cpuset_cpus=None if allowed is None else tuple(allowed),
        cpuset_nodes=None if not nodes else tuple(node.id for node in nodes if node.allowed),
    )
    vendors = {item.get("value") for item in top.iter("info") if item.get("name") == "CPUVendor"}
    name = info.get("Architecture") or ("x86_64" if vendors & X86_VENDORS else UNKNOWN_ARCHITECTURE)
    messages = tuple(_messages(top))
    return Topology(name, "hwloc", machine, cpus, nodes, limits, messages, l3_bytes=tuple(_l3_bytes(top)))


def _l3_bytes(top: Element) -> Iterator[int]:
    """Yield the size of each L3 cache in document order, as `_levels` numbers them; -1 where it is unknown."""
    for element in top.iter("object"):
        if element.get("type") == "L3Cache":
            yield plain_number(element.get("cache_size", "")) or UNKNOWN


def _group_of(top: Element) -> str:
    """Return the control group that the machine was exported in, empty where the export has none."""
    return next((item.get("value") or "" for item in top.findall("info") if item.get("name") == "LinuxCgroup"), "")


def parsed_export(text: bytes) -> Export:
    """Return an export in its parts.

    Raises:
        TopologyError: `text` is not an hwloc export, or defines entities.
    """
    root = _parsed(text)
    top = root.find("object")
    if root.tag != "topology" or top is None or top.get("type") != "Machine":
        raise TopologyError("this XML is not an hwloc topology: it has no <topology> with a Machine object")
    if not root.get("version", "").startswith(("2.", "3.")):
        raise TopologyError(
            f"this hwloc topology has version {root.get('version', '1.x')[:40]!r}; export it again with hwloc 2 or 3"
        )
    return Export(root, top)


def _parsed(text: bytes) -> Element:
    if LONG_TAG.search(text):
        raise TopologyError(f"this XML has a tag of more than {MAX_TAG_BYTES} bytes; hwloc writes shorter ones")
    try:
        root: Element = fromstring(text)
    except (ParseError, ValueError, LookupError) as error:
        raise TopologyError(f"this is not well-formed XML ({error})") from None
    except DefusedXmlException as error:
        raise TopologyError(
            f"this XML defines entities or external references, which are rejected ({type(error).__name__})"
        ) from None
    return root


def _levels(top: Element) -> dict[int, Any]:
    """Return {cpu: {level: group number}} of every PU, groups numbered in document order."""
    found: dict[int, Any] = {}
    counts: dict[str, int] = {}

    def walk(element: Element, above: dict[str, int]) -> None:
        kind = element.get("type", "")
        level = LEVELS.get(kind) or GROUP_LEVELS.get(element.get("subtype", "") if kind == "Group" else "")
        if level is not None:
            above = above | {level: counts.setdefault(level, 0)}
            counts[level] += 1
        if kind == "PU":
            found[_number(element, "os_index")] = above
        for child in element.findall("object"):
            walk(child, above)

    try:
        walk(top, {})
    except RecursionError:
        raise TopologyError("this hwloc topology exceeds the maximum depth of nested objects") from None
    return dict(sorted(found.items()))


def _nodes(root: Element, top: Element, levels: dict[int, Any]) -> tuple[MemoryNodeInfo, ...]:
    allowed = cpu_set(top, "allowed_nodeset")
    distances = dict(_distances(root))
    free = set(levels)
    nodes: list[MemoryNodeInfo] = []
    listed = 0
    elements = [element for element in top.iter("object") if element.get("type") == "NUMANode"]
    if len(elements) == 1 and elements[0].get("local_memory") is None and not distances:
        # Without NUMA information hwloc exports one node, because its topologies always have one.
        return ()
    # lstopo omits the size of a node without memory; where no node has a size, the sizes are unknown.
    no_size = 0 if any(element.get("local_memory") for element in elements) else UNKNOWN
    for element in sorted(elements, key=lambda element: _number(element, "os_index")):
        number = _number(element, "os_index")
        size = _number(element, "local_memory") if element.get("local_memory") else no_size
        near = cpu_set(element, "cpuset") or ()
        listed += len(near)
        if listed > MAX_LISTED:
            raise TopologyError("the NUMA nodes of this hwloc topology list too many CPUs")
        cpus = tuple(cpu for cpu in near if cpu in free)
        free.difference_update(cpus)
        nodes.append(
            MemoryNodeInfo(
                total_memory=size,
                id=number,
                cpus=cpus,
                has_memory=None if size == UNKNOWN else size > 0,
                allowed=allowed is None or number in allowed,
                distances=distances.get(number),
            )
        )
    return tuple(nodes)


def _messages(top: Element) -> Iterator[Message]:
    """Report nodes near the same CPUs: the export does not show which node the CPUs belong to."""
    sets = [element.get("cpuset") for element in top.iter("object") if element.get("type") == "NUMANode"]
    if len(set(sets)) < len(sets):
        yield HWLOC_NODES_DOUBTFUL()


def _distances(root: Element) -> Iterator[tuple[int, dict[int, int]]]:
    """Yield (node, {node: distance}) of the NUMA latency matrix."""
    for matrix in root.findall("distances2"):
        if matrix.get("type") != "NUMANode" or matrix.get("name", "NUMALatency") != "NUMALatency":
            continue
        ids = [_digits(word) for part in matrix.findall("indexes") for word in (part.text or "").split()]
        values = [_digits(word) for part in matrix.findall("u64values") for word in (part.text or "").split()]
        if len(values) != len(ids) ** 2 or matrix.get("indexing", "os") != "os":
            raise TopologyError("the distance matrix of this hwloc topology does not match its nodes")
        for row, node in enumerate(ids):
            yield node, dict(zip(ids, values[row * len(ids) :]))
        return


def _kinds(root: Element, levels: dict[int, Any]) -> dict[int, CoreKind]:
    """Return {cpu: kind} of a hybrid chip.

    From Intel's core types, from the efficiency that the user or the system has set, or else from capacities or
    maximal frequencies.
    """
    named: dict[int, str] = {}
    found: dict[str, dict[int, int]] = {"LinuxCapacity": {}, "FrequencyMaxMHz": {}, "forced_efficiency": {}}
    for element in root.findall("cpukind"):
        info = {item.get("name"): item.get("value") or "" for item in element.findall("info")}
        info["forced_efficiency"] = element.get("forced_efficiency", "")
        for cpu in cpu_set(element, "cpuset") or ():
            if info.get("CoreType") in INTEL_KINDS:
                named[cpu] = INTEL_KINDS[info["CoreType"]]
            for name, numbers in found.items():
                if info.get(name, "").isdecimal():
                    numbers[cpu] = _digits(info[name])
    capacities, frequencies, forced = found.values()
    hybrid = completed_kinds(named, levels) or _forced_kinds(forced, levels)
    return named_kinds(hybrid, frequencies) if hybrid else kinds_by_speed(capacities or frequencies)


def _forced_kinds(forced: dict[int, int], levels: dict[int, Any]) -> dict[int, str]:
    """Return {cpu: kind} by ``forced_efficiency`` (hwloc's documentation, "Kinds of CPU cores"): 0 is the slowest."""
    if not levels.keys() <= forced.keys() or len(set(forced.values())) < 2:
        return {}
    slowest = min(forced.values())
    return {cpu: EFFICIENCY if forced[cpu] == slowest else PERFORMANCE for cpu in levels}


def cpu_set(element: Element, name: str) -> list[int] | None:
    """Return the ids of a set (``0xf``, ``0x00000001,0x0``), None where the attribute is absent."""
    text = element.get(name)
    if text is None:
        return None
    if text.startswith("0xf...f"):
        raise TopologyError(f"the {name} of this hwloc topology is infinite (0xf...f); export a finite set")
    words = [word.removeprefix("0x") or "0" for word in text.split(",")]
    try:
        return parse_mask(",".join([words[0], *(word.rjust(8, "0") for word in words[1:])]))
    except IDListError as error:
        raise TopologyError(f"the {name} of this hwloc topology is invalid: {error}") from None


def _number(element: Element, name: str) -> int:
    text = element.get(name)
    if text is None:
        raise TopologyError(f"an object of type {element.get('type')} in this hwloc topology has no {name}")
    number = _digits(text)
    if name == "os_index" and number > MAX_ID:
        raise TopologyError(f"the {name} {number} in this hwloc topology is too large; the largest is {MAX_ID}")
    return number


def _digits(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise TopologyError(f"{text[:40]!r} in this hwloc topology is not a number")
    return int(text)
