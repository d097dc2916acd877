"""The GPUs as this process sees them, each with the NUMA nodes that it is next to and what every source says."""

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
    """Return the GPUs that this process (or one with `environ`) sees; the drivers' libraries are asked, too.

    `user_nodes` are the NUMA nodes that the user says, one per GPU; `whole_bus` adds the GPUs that the driver hides.
    """
    from ompaffinity.topology.tree import DirectoryTree

    seen_by = os.environ if environ is None else environ
    with DirectoryTree("/") as tree:
        return read_gpus(tree, topology, seen_by, ask_drivers=True, user_nodes=user_nodes, whole_bus=whole_bus)


def read_gpus(
    tree: Tree,
    topology: Topology,
    environ: Mapping[str, str],
    *,
    ask_drivers: bool = False,
    user_nodes: tuple[int, ...] | None = None,
    whole_bus: bool = False,
) -> GPUList:
    """Return the GPUs of a machine's files as a process with `environ` sees them.

    With `whole_bus` also those that the bus shows and the driver hides from this process.
    """
    known = pci_gpus(tree)
    answers: dict[str, list[Answer]] = {}
    libraries: dict[str, str] = {}
    for vendor, view in _views(tree, topology) if ask_drivers else ():
        libraries[vendor] = view.problem or "ok"
        told = {device.address for device in view.gpus}
        # The bus of a container shows the whole machine; the driver shows what is this process's. Parts of an AMD GPU
        # share its address.
        hidden = vendor if view.complete and not whole_bus else None
        known = [device for device in known if device.address not in told and device.vendor != hidden]
        known += view.gpus
        answers.update(view.answers or {})
    visible, messages = visible_gpus(known, environ)
    found = []
    for index, device in enumerate(visible):
        said = pci_answers(tree, topology, device.address)
        known_sources = {answer.source for answer in said}
        said += [answer for answer in answers.get(device.address, ()) if answer.source not in known_sources]
        found.append(settled(index, device, said, topology, user_nodes))
    return GPUList.of(found, messages, libraries)


def settled(
    index: int,
    device: PhysicalGPU,
    said: Iterable[Answer],
    topology: Topology,
    user_nodes: tuple[int, ...] | None = None,
) -> GPU:
    """Return a GPU with where it is, of all that the sources say; the user, if asked, is believed before them."""
    answers = [*said]
    if user_nodes is not None and index < len(user_nodes):
        answers.insert(0, Answer(USER, (user_nodes[index],), "--numa-bind-nodes", user_nodes[index]))
    home, messages = settle(f"GPU {index} ({device.address})", answers, topology)
    own = next((answer.named for answer in answers if answer.source == "own-memory"), None)
    return GPU(
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
