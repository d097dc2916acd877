"""The GPUs as this process sees them, each with the NUMA nodes that it is next to and what every source says."""

from __future__ import annotations

import os

from ompaffinity.devices.agreement import settle
from ompaffinity.devices.pci import Answer, pci_answers, pci_devices
from ompaffinity.devices.visibility import NVIDIA, visible_devices
from ompaffinity.errors import RequestError
from ompaffinity.records import Message, NamedTuple
from ompaffinity.topology.idlist import format_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.devices.nvml import DriverView
    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree


class Device(NamedTuple):
    """A GPU: its number in this process (from 0), its PCI address, the CPU nodes it is next to, and who says so.

    `nodes` is empty where nothing tells; `source` is then None. `own_node` is the NUMA node that its memory is, if it
    is one. `answers` are those of all sources.
    """

    number: int
    address: str
    vendor: str
    name: str
    uuid: str
    nodes: tuple[int, ...]
    source: str | None
    own_node: int | None
    answers: tuple[Answer, ...]

    def near_cpus(self, topology: Topology) -> tuple[int, ...]:
        """Return the CPUs on line next to it, ascending; none where its nodes are not known."""
        return tuple(sorted(cpu for node in self.nodes for cpu in topology.node(node).cpus))

    def to_document(self, topology: Topology) -> dict[str, Any]:
        """Return it as plain values, ready for JSON."""
        return {
            "index": self.number,
            "address": self.address,
            "vendor": self.vendor,
            "name": self.name,
            "uuid": self.uuid,
            "nodes": list(self.nodes),
            "source": self.source,
            "memory_node": self.own_node,
            "near_cpus": format_id_list(self.near_cpus(topology)),
            "answers": [
                {
                    "source": answer.source,
                    "nodes": None if answer.nodes is None else list(answer.nodes),
                    "detail": answer.detail,
                }
                for answer in self.answers
            ],
        }


class DeviceList(NamedTuple):
    """The GPUs by their numbers in this process, the messages, and what each driver library said of itself."""

    devices: tuple[Device, ...]
    messages: tuple[Message, ...] = ()
    libraries: dict[str, str] = {}

    def to_document(self, topology: Topology) -> dict[str, Any]:
        """Return the ``ompaffinity.devices/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.devices/1",
            "machine": topology.machine,
            "devices": [device.to_document(topology) for device in self.devices],
            "libraries": self.libraries,
            "warnings": [message._asdict() for message in self.messages],
        }


def live_devices(topology: Topology) -> DeviceList:
    """Return the GPUs that this process sees; the drivers' libraries are asked, too."""
    from ompaffinity.topology.tree import DirectoryTree

    with DirectoryTree("/") as tree:
        return read_devices(tree, topology, os.environ, ask_drivers=True)


def recorded_devices(path: str, topology: Topology) -> DeviceList:
    """Return the GPUs of a recorded machine, all of them, by its files alone.

    Raises:
        TopologyError: the record holds no files.
    """
    from ompaffinity.topology.load import recorded_tree

    with recorded_tree(path) as tree:
        return read_devices(tree, topology, {})


def read_devices(
    tree: Tree, topology: Topology, environ: Mapping[str, str], *, ask_drivers: bool = False
) -> DeviceList:
    """Return the GPUs of a machine's files as a process with `environ` sees them."""
    known = {device.address: device for device in pci_devices(tree)}
    answers: dict[str, list[Answer]] = {}
    libraries: dict[str, str] = {}
    for vendor, view in _views(tree, topology) if ask_drivers else ():
        libraries[vendor] = view.problem or "ok"
        for device in view.devices:
            known[device.address] = device
        answers.update(view.answers)
    visible, messages = visible_devices([*known.values()], environ)
    found, told = [], list(messages)
    for index, device in enumerate(visible):
        said = pci_answers(tree, topology, device.address)
        known_sources = {answer.source for answer in said}
        said += [answer for answer in answers.get(device.address, ()) if answer.source not in known_sources]
        settled, about = settle(f"GPU {index} ({device.address})", said, topology)
        told += about
        own = next((answer.named for answer in said if answer.source == "own-memory"), None)
        found.append(
            Device(
                index,
                device.address,
                device.vendor,
                device.name,
                device.uuid,
                settled.nodes,
                settled.source,
                own,
                tuple(said),
            )
        )
    return DeviceList(tuple(found), tuple(told), libraries)


def _views(tree: Tree, topology: Topology) -> list[tuple[str, DriverView]]:
    """Ask the drivers' libraries, also where the bus shows nothing, for containers hide it."""
    from ompaffinity.devices.nvml import read_nvml

    return [(NVIDIA, read_nvml(tree, topology))]


def get_device_numa_node(index: int) -> int | None:
    """Return the NUMA node that a GPU is next to, None where nothing tells (a server's name for it).

    `index` is its number in this process, as CUDA_VISIBLE_DEVICES and its like leave it; no driver is initialised.

    Raises:
        RequestError: this process sees no such GPU.
        TopologyError: the machine cannot be read.
    """
    nodes = get_all_device_numa_nodes()
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(nodes):
        raise RequestError(f"GPU {index!r} is not one of the {len(nodes)} GPUs that this process sees")
    return nodes[index]


def get_all_device_numa_nodes() -> list[int | None]:
    """Return the NUMA node that each GPU of this process is next to, None for one that nothing is known of.

    Raises:
        TopologyError: the machine cannot be read.
    """
    from ompaffinity.topology.load import load_topology

    return [device.nodes[0] if device.nodes else None for device in live_devices(load_topology()).devices]
