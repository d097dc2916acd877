"""The GPUs as this process sees them, each with the NUMA nodes that it is next to and what every source says."""

from __future__ import annotations

import os

from ompaffinity.devices.agreement import USER, settle
from ompaffinity.devices.pci import Answer, pci_answers, pci_devices
from ompaffinity.devices.visibility import AMD, NVIDIA, visible_devices
from ompaffinity.records import Message, NamedTuple
from ompaffinity.topology.idlist import format_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ompaffinity.devices.nvml import DriverView
    from ompaffinity.devices.visibility import PhysicalDevice
    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree


class Device(NamedTuple):
    """A GPU: its number in this process (from 0), its PCI address, the CPU nodes it is next to, and who says so.

    `nodes` is empty where nothing tells; `source` is then None. `own_node` is the NUMA node that its memory is, if it
    is one. `answers` are those of all sources, `messages` what there is to say of this one, `parts` the UUIDs of its
    MIG instances.
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
    messages: tuple[Message, ...] = ()
    parts: tuple[str, ...] = ()

    def near_cpus(self, topology: Topology) -> tuple[int, ...]:
        """Return the CPUs on line next to it, ascending; none where its nodes are not known."""
        return tuple(sorted(cpu for node in self.nodes for cpu in topology.node(node).cpus))

    def to_document(self, topology: Topology) -> dict[str, Any]:
        """Return it as plain values, ready for JSON."""
        return self.to_record(topology) | {"uuid": self.uuid}

    def to_record(self, topology: Topology) -> dict[str, Any]:
        """Return it as a capture of the machine holds it: without what is a serial number."""
        return {
            "index": self.number,
            "address": self.address,
            "vendor": self.vendor,
            "name": self.name,
            "nodes": list(self.nodes),
            "source": self.source,
            "memory_node": self.own_node,
            "near_cpus": format_id_list(self.near_cpus(topology)),
            "answers": [
                {
                    "source": answer.source,
                    "nodes": None if answer.nodes is None else list(answer.nodes),
                    "detail": answer.detail,
                    "node": answer.named,
                }
                for answer in self.answers
            ],
        }


class DeviceList(NamedTuple):
    """The GPUs by their numbers in this process, the messages, and what each driver library said of itself."""

    devices: tuple[Device, ...]
    messages: tuple[Message, ...] = ()
    libraries: dict[str, str] = {}

    @classmethod
    def of(
        cls, devices: Iterable[Device], messages: Iterable[Message] = (), libraries: Mapping[str, str] | None = None
    ) -> DeviceList:
        """Return the list of these GPUs, with what there is to say of all of them and of each."""
        found = tuple(devices)
        told = (*messages, *(message for device in found for message in device.messages))
        return cls(found, told, dict(libraries or {}))

    def to_document(self, topology: Topology) -> dict[str, Any]:
        """Return the ``ompaffinity.devices/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.devices/1",
            "machine": topology.machine,
            "devices": [device.to_document(topology) for device in self.devices],
            "libraries": self.libraries,
            "warnings": [message._asdict() for message in self.messages],
        }


def live_devices(
    topology: Topology,
    *,
    environ: Mapping[str, str] | None = None,
    user_nodes: tuple[int, ...] | None = None,
    whole_bus: bool = False,
) -> DeviceList:
    """Return the GPUs that this process (or one with `environ`) sees; the drivers' libraries are asked, too.

    `user_nodes` are the NUMA nodes that the user says, one per GPU; `whole_bus` adds the GPUs that the driver hides.
    """
    from ompaffinity.topology.tree import DirectoryTree

    seen_by = os.environ if environ is None else environ
    with DirectoryTree("/") as tree:
        return read_devices(tree, topology, seen_by, ask_drivers=True, user_nodes=user_nodes, whole_bus=whole_bus)


def read_devices(
    tree: Tree,
    topology: Topology,
    environ: Mapping[str, str],
    *,
    ask_drivers: bool = False,
    user_nodes: tuple[int, ...] | None = None,
    whole_bus: bool = False,
) -> DeviceList:
    """Return the GPUs of a machine's files as a process with `environ` sees them.

    With `whole_bus` also those that the bus shows and the driver hides from this process.
    """
    known = pci_devices(tree)
    answers: dict[str, list[Answer]] = {}
    libraries: dict[str, str] = {}
    for vendor, view in _views(tree, topology) if ask_drivers else ():
        libraries[vendor] = view.problem or "ok"
        told = {device.address for device in view.devices}
        # The bus of a container shows the whole machine; the driver shows what is this process's. Parts of an AMD GPU
        # share its address.
        hidden = vendor if view.complete and not whole_bus else None
        known = [device for device in known if device.address not in told and device.vendor != hidden]
        known += view.devices
        answers.update(view.answers)
    visible, messages = visible_devices(known, environ)
    found = []
    for index, device in enumerate(visible):
        said = pci_answers(tree, topology, device.address)
        known_sources = {answer.source for answer in said}
        said += [answer for answer in answers.get(device.address, ()) if answer.source not in known_sources]
        found.append(settled(index, device, said, topology, user_nodes))
    return DeviceList.of(found, messages, libraries)


def settled(
    index: int,
    device: PhysicalDevice,
    said: Iterable[Answer],
    topology: Topology,
    user_nodes: tuple[int, ...] | None = None,
) -> Device:
    """Return a GPU with where it is, of all that the sources say; the user, if asked, is believed before them."""
    answers = [*said]
    if user_nodes is not None and index < len(user_nodes):
        answers.insert(0, Answer(USER, (user_nodes[index],), "--numa-bind-nodes", user_nodes[index]))
    home, messages = settle(f"GPU {index} ({device.address})", answers, topology)
    own = next((answer.named for answer in answers if answer.source == "own-memory"), None)
    return Device(
        number=index,
        address=device.address,
        vendor=device.vendor,
        name=device.name,
        uuid=device.uuid,
        nodes=home.nodes,
        source=home.source,
        own_node=own,
        answers=tuple(answers),
        messages=tuple(messages),
        parts=device.parts,
    )


def _views(tree: Tree, topology: Topology) -> list[tuple[str, DriverView]]:
    """Ask the drivers' libraries, also where the bus shows nothing, for containers hide it."""
    from ompaffinity.devices.amdsmi import read_amdsmi
    from ompaffinity.devices.nvml import read_nvml

    return [(NVIDIA, read_nvml(tree, topology)), (AMD, read_amdsmi(tree, topology))]
