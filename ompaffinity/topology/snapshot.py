"""Write a machine to a capture file, and read it back: it gives the same plan on any computer.

The file is the ``ompaffinity.topology/1`` document that ``topology --json`` prints. It has no host
name, serial numbers or paths.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, TopologyError
from ompaffinity.files import write_whole
from ompaffinity.ids import MAX_ID, parse_id_list
from ompaffinity.messages import Message
from ompaffinity.topology.model import UNKNOWN, Limits, LogicalCPUInfo, MemoryNodeInfo, Topology
from ompaffinity.topology.nodes import MAX_LISTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

SCHEMA = "ompaffinity.topology/1"
KINDS = (None, "performance", "efficiency", "low-power")


def write_capture(topology: Topology, path: str, devices: Iterable[dict[str, Any]] = ()) -> None:
    """Write a machine, with its `devices` as plain values, to a file that `parse_capture` reads.

    Raises:
        TopologyError: the file cannot be written.
    """
    content = json.dumps(topology.to_document() | {"devices": [*devices]}) + "\n"
    try:
        write_whole(path, content.encode())
    except OSError as error:
        raise TopologyError(f"cannot write {path}: {error.strerror}; name a writable file") from None


def parse_capture(document: dict[str, Any]) -> Topology:
    """Return the machine in an ``ompaffinity.topology/1`` document.

    Raises:
        TopologyError: `document` is not such a document.
    """
    if document.get("schema") != SCHEMA:
        schema = str(document.get("schema"))[:60]
        raise TopologyError(f"the schema of this capture is {schema!r}; it must be {SCHEMA!r}")
    try:
        cpus = tuple(sorted((_cpu(row) for row in document["cpus"]), key=lambda cpu: cpu.id))
        nodes = tuple(sorted(_nodes(document["nodes"]), key=lambda node: node.id))
        topology = Topology(
            _text(document["architecture"]),
            _text(document["source"]),
            _text(document["machine"]),
            cpus,
            nodes,
            _limits(document["limits"]),
            tuple(_message(row) for row in document.get("warnings", [])),
            _count(document.get("total_bytes"), UNKNOWN),
            l3_bytes=tuple(_count(size, UNKNOWN) for size in document.get("l3_bytes", [])),
        )
    except (KeyError, TypeError, AttributeError, ValueError, IDListError) as error:
        raise TopologyError(f"this capture is invalid ({type(error).__name__}: {error})") from None
    _check(topology)
    return topology


def _check(topology: Topology) -> None:
    numbers = [cpu.id for cpu in topology.cpus]
    nodes = [node.id for node in topology.nodes]
    if len(set(numbers)) != len(numbers) or len(set(nodes)) != len(nodes):
        raise TopologyError("this capture is invalid: a CPU or a node is listed twice; capture the machine again")
    if not any(cpu.online for cpu in topology.cpus):
        raise TopologyError("this capture is invalid: no CPU is online; capture the machine again")
    if any(cpu.allowed and not cpu.online for cpu in topology.cpus):
        raise TopologyError("this capture is invalid: an offline CPU is allowed; capture the machine again")
    if {cpu.numa_node for cpu in topology.cpus} - {UNKNOWN, *nodes}:
        raise TopologyError("this capture is invalid: a CPU is on a node that is not listed; capture the machine again")
    if {cpu for node in topology.nodes for cpu in node.cpus} - set(numbers):
        raise TopologyError("this capture is invalid: a node has a CPU that is not listed; capture the machine again")


def _cpu(row: dict[str, Any]) -> LogicalCPUInfo:
    kind = row["kind"]
    if kind not in KINDS:
        raise ValueError(f"the kind {str(kind)[:40]!r} of a CPU is unknown")
    return LogicalCPUInfo(
        id=_id(row["cpu"]),
        physical_core=_level(row["core"]),
        numa_node=_level(row["node"]),
        package=_level(row["package"]),
        die=_level(row["die"]),
        l3=_level(row["l3"]),
        cluster=_level(row["cluster"]),
        book=_level(row["book"]),
        drawer=_level(row["drawer"]),
        kind=kind,
        online=_flag(row["online"]),
        allowed=_flag(row["allowed"]),
        isolated=_flag(row["isolated"]),
        core_class=_level(row.get("core_class")),
        speed=_speed(row.get("speed")),
        hidden=_flag(row.get("hidden", False)),
    )


def _speed(value: object) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise ValueError(f"the speed {str(value)[:40]!r} of a CPU is not a positive number")
    return float(value)


def _nodes(rows: Iterable[dict[str, Any]]) -> Iterator[MemoryNodeInfo]:
    listed = 0
    for row in rows:
        node = _node(row)
        listed += len(node.cpus)
        if listed > MAX_LISTED:
            raise ValueError("its nodes list too many CPUs")
        yield node


def _node(row: dict[str, Any]) -> MemoryNodeInfo:
    has_memory = row["has_memory"]
    return MemoryNodeInfo(
        total_memory=_count(row["total_bytes"], UNKNOWN),
        available_memory=_count(row["available_bytes"], UNKNOWN),
        id=_id(row["node"]),
        cpus=tuple(parse_id_list(row["cpus"])),
        has_memory=None if has_memory is None else _flag(has_memory),
        allowed=_flag(row["allowed"]),
        distances={_id(int(node)): _count(distance, None) for node, distance in row["distances"].items()} or None,
        device_memory=_flag(row.get("device_memory", False)),
        interleave_weight=_count(row.get("interleave_weight"), UNKNOWN),
    )


def _limits(row: dict[str, Any]) -> Limits:
    quota = row["cpu_quota"]
    if quota is not None and (isinstance(quota, bool) or not isinstance(quota, (int, float)) or not 0 < quota < 1e9):
        raise ValueError(f"the CPU quota {str(quota)[:40]!r} is not a positive number")
    return Limits(
        unknown=tuple(map(_text, row.get("unknown", ()))),
        cpu_quota=quota,
        memory_limit_bytes=None if row["memory_limit_bytes"] is None else _count(row["memory_limit_bytes"], None),
        memory_usage_bytes=None if row["memory_usage_bytes"] is None else _count(row["memory_usage_bytes"], None),
        affinity=_ids_or_none(row["affinity"]),
        cpuset_cpus=_ids_or_none(row["cpuset_cpus"]),
        cpuset_nodes=_ids_or_none(row["cpuset_nodes"]),
    )


def _ids_or_none(text: Any) -> tuple[int, ...] | None:
    return None if text is None else tuple(parse_id_list(text))


def _message(row: dict[str, Any]) -> Message:
    if row["level"] not in ("warning", "note"):
        raise ValueError(f"the level {str(row['level'])[:40]!r} of a message is unknown")
    return Message(_text(row["code"]), row["level"], _text(row["message"]))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 2000:
        raise ValueError("a name or message is not printable text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"the flag {str(value)[:40]!r} is not true or false")
    return value


def _id(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_ID:
        raise ValueError(f"the number {str(value)[:40]!r} of a CPU, group or node is not an integer from 0 to {MAX_ID}")
    return value


def _level(value: object) -> int:
    return UNKNOWN if value is None else _id(value)


def _count(value: object, unknown: int | None) -> int:
    if value is None and unknown is not None:
        return unknown
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} is not a size or distance")
    return value
