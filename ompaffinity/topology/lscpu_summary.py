"""Reader: the summary that ``lscpu`` and ``lscpu -J`` print without ``-e``: counts, and the CPUs of each node.

It does not report which CPUs share a core, a package or an L3. These are assumed in the order in which Linux usually
numbers CPUs, with a message. Where the counts do not match the CPUs (chips with several kinds of cores), the
cores stay unknown. Source: lscpu(1) and outputs of util-linux 2.30 to 2.42.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, TopologyError
from ompaffinity.ids import parse_id_list
from ompaffinity.messages import LSCPU_SUMMARY
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, MemoryNodeInfo, Topology
from ompaffinity.topology.text import plain_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

COMMAND = "lscpu -J -e=CPU,CORE,SOCKET,NODE,CACHE,ONLINE,MAXMHZ"
NODE_FIELD = re.compile(r"NUMA node(\d{1,7}) CPU\(s\)")
MAX_DEPTH = 8


def summary_fields(text: str) -> dict[str, str] | None:
    """Return {field: value} of a summary, as text or as JSON; None where `text` is no summary."""
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return None
        rows = document.get("lscpu") if isinstance(document, dict) else None
        return dict(_json_fields(rows, MAX_DEPTH)) if isinstance(rows, list) else None
    pairs = [line.partition(":") for line in text.splitlines()]
    fields = {name.strip(): value.strip() for name, colon, value in pairs if colon}
    return fields if "CPU(s)" in fields else None


def _json_fields(rows: list[Any], depth: int) -> Iterator[tuple[str, str]]:
    for row in rows:
        if isinstance(row, dict):
            yield str(row.get("field", "")).strip().removesuffix(":"), str(row.get("data", ""))
            inner = row.get("children")
            if isinstance(inner, list) and depth:
                yield from _json_fields(inner, depth - 1)


def summarized_topology(fields: dict[str, str], machine: str, architecture: str) -> Topology:
    """Return the machine of a summary.

    Raises:
        TopologyError: it names no online CPU, or its lists are invalid.
    """
    online = _ids(fields, "On-line CPU(s) list")
    count = plain_number(fields.get("CPU(s)", ""))
    if not online:
        if not count or count > 65536:
            raise TopologyError(f"this summary of lscpu names no CPU; record the machine with {COMMAND}")
        online = list(range(count))
    offline = _ids(fields, "Off-line CPU(s) list")
    members = {int(match[1]): _ids(fields, name) for name in fields if (match := NODE_FIELD.fullmatch(name))}
    members = {node: [cpu for cpu in cpus if cpu in set(online)] for node, cpus in members.items()}
    node_of = {cpu: node for node in sorted(members, reverse=True) for cpu in members[node]}
    levels = _assumed(fields, online, members)
    cpus = [LogicalCPUInfo(cpu, numa_node=node_of.get(cpu, UNKNOWN), **levels.get(cpu, {})) for cpu in online]
    cpus += [LogicalCPUInfo(cpu, online=False, allowed=False) for cpu in offline if cpu not in set(online)]
    nodes = tuple(MemoryNodeInfo(id=node, cpus=tuple(members[node])) for node in sorted(members))
    known = fields.get("Architecture") or architecture
    what = "which CPUs share a core, a package or an L3 is assumed" if levels else "which CPUs share a core is unknown"
    message = LSCPU_SUMMARY(what=what, command=COMMAND)
    return Topology(known, "lscpu", machine, tuple(sorted(cpus)), nodes, messages=(message,))


def _ids(fields: dict[str, str], name: str) -> list[int]:
    text = fields.get(name, "")
    if text in ("", "-"):
        return []
    try:
        return parse_id_list(text)
    except IDListError as error:
        raise TopologyError(f"{name!r} of this summary of lscpu is invalid: {error}") from None


def _assumed(fields: dict[str, str], online: Sequence[int], members: dict[int, list[int]]) -> dict[int, dict[str, Any]]:
    """Return {cpu: {level: group}} by the counts; empty where they do not match the CPUs."""
    threads = _count(fields, "Thread(s) per core") or 1
    packages = _packages(fields)
    cores, rest = divmod(len(online), threads)
    per_package = _count(fields, "Core(s) per socket", "Core(s) per cluster")
    if rest or (per_package is not None and per_package * packages != cores) or cores % packages:
        return {}
    found: dict[int, dict[str, Any]] = {}
    ordered = [core for cpus in _groups(online, members) for core in _cores(cpus, threads)]
    caches = _caches(fields)
    for number, core in enumerate(ordered):
        for cpu in core:
            found[cpu] = {"physical_core": number, "package": number * packages // len(ordered)}
            if caches and len(ordered) % caches == 0:
                found[cpu]["l3"] = number * caches // len(ordered)
    return found


def _groups(online: Sequence[int], members: dict[int, list[int]]) -> list[list[int]]:
    """Return the CPUs of each node, or all of them where the nodes do not list each once."""
    listed = [cpu for node in sorted(members) for cpu in members[node]]
    return [members[node] for node in sorted(members)] if sorted(listed) == list(online) else [list(online)]


def _cores(cpus: list[int], threads: int) -> list[tuple[int, ...]]:
    """Return cores whose siblings are as far apart as Linux usually numbers them: all first ones, then the others."""
    size = len(cpus) // threads
    if size * threads != len(cpus):
        return [(cpu,) for cpu in cpus]
    return [tuple(cpus[position + size * sibling] for sibling in range(threads)) for position in range(size)]


def _packages(fields: dict[str, str]) -> int:
    packages = _count(fields, "Socket(s)")
    if packages is not None:
        return packages
    # s390x counts them per book.
    parts = [_count(fields, name) for name in ("Socket(s) per book", "Book(s) per drawer", "Drawer(s)")]
    total = 1
    for part in parts:
        total *= part or 1
    return total


def _caches(fields: dict[str, str]) -> int | None:
    """Return how many L3 caches there are: ``32 MiB (2 instances)``."""
    for name in ("L3 cache", "L3"):
        match = re.search(r"\((\d{1,6}) instances?\)", fields.get(name, ""))
        if match:
            return int(match[1])
    return None


def _count(fields: dict[str, str], *names: str) -> int | None:
    numbers = (plain_number(fields.get(name, "")) for name in names)
    return next((number for number in numbers if number), None)
