"""The GPUs of a recorded machine: of its files, of a capture, or of an hwloc XML export."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ompaffinity.devices.agreement import TRUST, USER
from ompaffinity.devices.live import read_gpus, settled
from ompaffinity.devices.model import GPUList, NoGPUsError
from ompaffinity.devices.pci import DISPLAYS, VENDORS, Answer, computes, cpu_nodes, located, pci_address
from ompaffinity.devices.visibility import AMD, INTEL, NVIDIA, OTHER, PhysicalGPU, visible_gpus
from ompaffinity.errors import TopologyError
from ompaffinity.ids import MAX_ID
from ompaffinity.topology.record import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any
    from xml.etree.ElementTree import Element

    from ompaffinity.topology.hwloc import Export
    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.record import RecordedMachine

MAX_DEVICES = 4096
MAX_TEXT = 2000


def recorded_gpus(
    machine: str | RecordedMachine, topology: Topology, *, user_nodes: tuple[int, ...] | None = None
) -> GPUList:
    """Return the GPUs of a recorded machine, all of them; no driver is asked, and no variable counts.

    `machine` is the path of the record, or the record if it is open already.

    Raises:
        TopologyError: the record cannot be read, or its form has no GPUs (a saved output of lscpu).
    """
    with opened(machine) as recording:
        if recording is None or recording.lscpu is not None:
            raise NoGPUsError("this record holds no devices; record the machine's sys/ as a directory or tar file")
        if recording.tree is not None:
            return read_gpus(recording.tree, topology, {}, user_nodes=user_nodes)
        if recording.export is not None:
            found = dict(_exported(recording.export, topology))
            visible, messages = visible_gpus([*found], {})
            return GPUList.of(
                (settled(index, device, found[device], topology, user_nodes) for index, device in enumerate(visible)),
                messages,
            )
        return GPUList.of(
            settled(index, device, answers, topology, user_nodes)
            for index, (device, answers) in enumerate(_captured(recording.capture or {}, topology))
        )


def _captured(document: dict[str, Any], topology: Topology) -> list[tuple[PhysicalGPU, list[Answer]]]:
    """Return the GPUs of a capture, in their order, with the answers about each."""
    try:
        rows = document["devices"]
        if not isinstance(rows, list) or len(rows) > MAX_DEVICES:
            raise ValueError("devices")
        return [(_device(row), _answers(row["answers"], topology)) for row in rows]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TopologyError(f"the devices of this capture are damaged ({type(error).__name__}: {error})") from None


def _device(row: dict[str, Any]) -> PhysicalGPU:
    address = pci_address(_text(row["address"]))
    if address is None or row["vendor"] not in (NVIDIA, AMD, INTEL, OTHER):
        raise ValueError("the address or the vendor of a device")
    return PhysicalGPU(address, row["vendor"], _text(row["name"]))


def _answers(rows: list[Any], topology: Topology) -> list[Answer]:
    if not isinstance(rows, list) or len(rows) > len(TRUST):
        raise ValueError("the answers of a device")
    answers = [_answer(row, topology) for row in rows]
    if len({answer.source for answer in answers}) < len(answers):
        raise ValueError("a source that answers twice")
    return answers


def _answer(row: dict[str, Any], topology: Topology) -> Answer:
    if row["source"] not in TRUST or row["source"] == USER:
        raise ValueError("the source of an answer")
    nodes = None if row["nodes"] is None else tuple(_node(node) for node in row["nodes"])
    if nodes is not None and not set(nodes) <= set(cpu_nodes(topology)):
        raise ValueError("a device next to a node that has no CPUs")
    named = row.get("node")
    return Answer(row["source"], nodes, _text(row["detail"]), None if named is None else _node(named))


def _node(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_ID:
        raise ValueError("the number of a node")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT:
        raise ValueError("a name is not printable text")
    return value


def _exported(export: Export, topology: Topology) -> Iterator[tuple[PhysicalGPU, list[Answer]]]:
    """Yield the GPUs of an hwloc export: each is near the CPUs of the object that its bus hangs from.

    Source: hwloc's documentation, "I/O Devices".
    """
    for element, cpus in _pci_devices(export):
        address = pci_address(element.get("pci_busid", ""))
        kind = re.match(r"([0-9a-f]{4}) \[([0-9a-f]{4}):([0-9a-f]{4})\]", element.get("pci_type", ""))
        if address is None or kind is None or not computes(kind[1], kind[2], kind[3]):
            continue
        nodes = tuple(node for node in cpu_nodes(topology) if cpus & set(topology.node(node).cpus))
        name = "".join(letter for letter in element.get("name", "") if letter.isprintable()) or f"{kind[2]}:{kind[3]}"
        vendor = VENDORS.get(kind[2], OTHER)
        device = PhysicalGPU(address, vendor, name[:MAX_TEXT], display=kind[1] in DISPLAYS)
        yield device, [located("local-cpus", "its CPUs are those", nodes, topology)]


def _pci_devices(export: Export) -> Iterator[tuple[Element, set[int]]]:
    """Yield the PCI devices of an export, in its order, with the CPUs of the nearest object that has any."""
    from ompaffinity.topology.hwloc import cpu_set

    waiting: list[tuple[Element, set[int]]] = [(export.top, set())]
    while waiting:
        element, near = waiting.pop()
        cpus = cpu_set(element, "cpuset")
        here = near if cpus is None else set(cpus)
        if element.get("type") == "PCIDev":
            yield element, here
        waiting += [(child, here) for child in reversed(element.findall("object"))]
