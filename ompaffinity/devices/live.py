"""The GPUs visible to this process, each with its local NUMA nodes and the answer of every source."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.devices.agreement import USER, settle
from ompaffinity.devices.model import GPU, GPUList
from ompaffinity.devices.pci import Answer, pci_answers, pci_gpus
from ompaffinity.devices.visibility import AMD, NVIDIA, visible_gpus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ompaffinity.devices.nvml import DriverView
    from ompaffinity.devices.visibility import PhysicalGPU
    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree


def live_gpus(
    topology: Topology,
    *,
    environ: Mapping[str, str] | None = None,
    user_nodes: tuple[int, ...] | None = None,
    whole_bus: bool = False,
) -> GPUList:
    """Return the GPUs visible to this process (or to one with `environ`), from sysfs and the drivers' libraries.

    `user_nodes` are the NUMA nodes that the user names, one per GPU; `whole_bus` adds the GPUs that the driver hides.
    """
    from ompaffinity.topology.tree import DirectoryTree

    environment = os.environ if environ is None else environ
    with DirectoryTree("/") as tree:
        return read_gpus(tree, topology, environment, query_drivers=True, user_nodes=user_nodes, whole_bus=whole_bus)


def read_gpus(
    tree: Tree,
    topology: Topology,
    environ: Mapping[str, str],
    *,
    query_drivers: bool = False,
    user_nodes: tuple[int, ...] | None = None,
    whole_bus: bool = False,
) -> GPUList:
    """Return the GPUs in `tree` that are visible to a process with `environ`.

    `whole_bus` adds the GPUs that the PCI bus shows and the driver hides from this process.
    """
    known = pci_gpus(tree)
    answers: dict[str, list[Answer]] = {}
    libraries: dict[str, str] = {}
    for vendor, view in _views(tree, topology) if query_drivers else ():
        libraries[vendor] = view.problem or "ok"
        reported = {device.address for device in view.gpus}
        # In a container the PCI bus shows the whole machine; the driver shows the GPUs of the container. Partitions of
        # an AMD GPU share its address.
        hidden = vendor if view.complete and not whole_bus else None
        known = [device for device in known if device.address not in reported and device.vendor != hidden]
        known += view.gpus
        answers.update(view.answers or {})
    visible, messages = visible_gpus(known, environ)
    gpus = []
    for index, device in enumerate(visible):
        device_answers = pci_answers(tree, topology, device.address)
        sources = {answer.source for answer in device_answers}
        device_answers += [answer for answer in answers.get(device.address, ()) if answer.source not in sources]
        gpus.append(settled(index, device, device_answers, topology, user_nodes))
    return GPUList.of(gpus, messages, libraries)


def settled(
    index: int,
    device: PhysicalGPU,
    answers: Iterable[Answer],
    topology: Topology,
    user_nodes: tuple[int, ...] | None = None,
) -> GPU:
    """Return a GPU with the nodes that follow from the answers; `user_nodes` override them."""
    all_answers = [*answers]
    if user_nodes is not None and index < len(user_nodes):
        all_answers.insert(0, Answer(USER, (user_nodes[index],), "--numa-bind-nodes", user_nodes[index]))
    home, messages = settle(f"GPU {index} ({device.address})", all_answers, topology)
    own = next((answer.named for answer in all_answers if answer.source == "own-memory"), None)
    return GPU(
        number=index,
        address=device.address,
        vendor=device.vendor,
        name=device.name,
        uuid=device.uuid,
        nodes=home.nodes,
        source=home.source,
        own_node=own,
        answers=tuple(all_answers),
        messages=tuple(messages),
        parts=device.parts,
    )


def _views(tree: Tree, topology: Topology) -> list[tuple[str, DriverView]]:
    """Query the drivers' libraries, also where the PCI bus shows no GPU: containers may hide the bus."""
    from ompaffinity.devices.amdsmi import read_amdsmi
    from ompaffinity.devices.nvml import read_nvml

    return [(NVIDIA, read_nvml(tree, topology)), (AMD, read_amdsmi(tree, topology))]
