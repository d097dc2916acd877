"""GPUs and other accelerators from sysfs: any vendor, no driver library.

Sources: Documentation/ABI/testing/sysfs-bus-pci (class, vendor, numa_node, local_cpulist), sysfs-devices-node and
Documentation/admin-guide/mm/numaperf.rst (access0, access1), PCI Code and ID Assignment (classes), the NVIDIA driver's
README (numa_status).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ompaffinity.devices.visibility import AMD, INTEL, NVIDIA, OTHER, PhysicalGPU
from ompaffinity.errors import IDListError
from ompaffinity.ids import format_id_list, parse_id_list, parse_mask
from ompaffinity.records import NamedTuple
from ompaffinity.topology.nodes import NODE_ROOT
from ompaffinity.topology.text import numbered, read_number, read_text

if TYPE_CHECKING:
    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree

PCI_ROOT = "sys/bus/pci/devices"
NVIDIA_ROOT = "proc/driver/nvidia/gpus"
DISPLAYS = ("0300", "0302", "0380")
"""VGA, 3D and other display controllers."""
ACCELERATORS, CO_PROCESSORS = "1200", "0b40"
COMPUTE = (("8086", "225"), ("1bcf", ""))
"""Co-processors that run programs, by vendor and prefix of the device number: Xeon Phi, NEC's Vector Engine. Others
are engines for encryption and compression (Intel QuickAssist)."""
VENDORS = {"10de": NVIDIA, "1002": AMD, "8086": INTEL}
NO_GPUS = ("1a03", "102b", "1013", "18ca", "19e5")
"""Vendors of display chips in management controllers, which run no programs: ASPEED, Matrox, Cirrus, XGI, Huawei."""
MAX_BRIDGES = 32
NO_DISTANCE = (0, 255)
"""ACPI 6.5, 5.2.17: 255 means unreachable; 0 is invalid."""


class Answer(NamedTuple):
    """What one source reports: `nodes` are the local NUMA nodes with CPUs of a GPU, None if the source has none.

    `detail` describes what was read, and `named` is the node, where the source names a single one.
    """

    source: str
    nodes: tuple[int, ...] | None
    detail: str
    named: int | None = None


def pci_address(text: str) -> str | None:
    """Return a PCI address in the form of sysfs (``0000:1a:00.0``), None if `text` is not a PCI address."""
    match = re.fullmatch(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?", text.strip())
    if match is None:
        return None
    return f"{int(match[1] or '0', 16):04x}:{match[2]}:{match[3]}.{match[4] or '0'}".lower()


def pci_gpus(tree: Tree) -> list[PhysicalGPU]:
    """Return the GPUs and accelerators on the PCI bus, by address."""
    gpus = []
    for name in tree.names(PCI_ROOT):
        address = pci_address(name)
        kind = (read_text(tree, f"{PCI_ROOT}/{name}/class") or "").removeprefix("0x")[:4]
        # A virtual function repeats its physical function.
        if address is None or "physfn" in tree.names(f"{PCI_ROOT}/{name}"):
            continue
        vendor = (read_text(tree, f"{PCI_ROOT}/{name}/vendor") or "").removeprefix("0x")
        if not vendor and tree.names(f"{NVIDIA_ROOT}/{name}"):
            vendor = "10de"
        model = (read_text(tree, f"{PCI_ROOT}/{name}/device") or "").removeprefix("0x")
        if not computes(kind, vendor, model):
            continue
        gpu_name = f"{vendor}:{model}" if model else ""
        gpus.append(PhysicalGPU(address, VENDORS.get(vendor, OTHER), gpu_name, display=kind in DISPLAYS))
    return gpus


def computes(kind: str, vendor: str, model: str) -> bool:
    """Return whether a device of this class, vendor and number (hexadecimal) is a GPU or an accelerator."""
    if kind in DISPLAYS:
        return vendor not in NO_GPUS
    if kind == CO_PROCESSORS:
        return any(vendor == maker and model.startswith(prefix) for maker, prefix in COMPUTE)
    return kind == ACCELERATORS


def pci_answers(tree: Tree, topology: Topology, address: str) -> list[Answer]:
    """Return what sysfs reports about the GPU at a PCI address: its node, its local CPUs, its bridges, its memory."""
    folder = f"{PCI_ROOT}/{address}"
    answers = []
    node = read_number(tree, f"{folder}/numa_node")
    if node is not None:
        nodes = nearest_cpu_nodes(tree, topology, node)
        answers.append(Answer("sysfs", nodes, f"numa_node {node}", None if node < 0 else node))
    local = _local_cpus(tree, folder)
    if local:
        near = tuple(node for node in cpu_nodes(topology) if local & set(topology.node(node).cpus))
        answers.append(located("local-cpus", "its CPUs are those", near, topology))
    bridge = _bridge_node(tree, folder)
    if bridge is not None:
        nodes = nearest_cpu_nodes(tree, topology, bridge)
        answers.append(Answer("bridge", nodes, f"a bridge above it has numa_node {bridge}", bridge))
    own = _own_memory_node(tree, address)
    if own is not None:
        answers.append(own_memory(own, tree, topology))
    return answers


def located(source: str, what: str, near: tuple[int, ...], topology: Topology) -> Answer:
    """Return the answer of a source that names CPU nodes: all of several nodes means unknown."""
    detail = f"{what} of node {format_id_list(near) or 'none'}"
    return Answer(source, near if informs(topology, near) else None, detail)


def own_memory(node: int, tree: Tree, topology: Topology) -> Answer:
    """Return the answer that follows from the node of a GPU's own memory."""
    return Answer("own-memory", nearest_cpu_nodes(tree, topology, node), f"its memory is node {node}", node)


def _bridge_node(tree: Tree, folder: str) -> int | None:
    """Return the node of the nearest bridge above a device that has one, found by the links in sysfs."""
    above = f"{folder}/.."
    for _ in range(MAX_BRIDGES):
        if read_text(tree, f"{above}/class") is None:
            return None
        node = read_number(tree, f"{above}/numa_node")
        if node is not None and node >= 0:
            return node
        above += "/.."
    return None


def _own_memory_node(tree: Tree, address: str) -> int | None:
    """Return the NUMA node of an NVIDIA GPU's own memory, None where it has none."""
    text = read_text(tree, f"{NVIDIA_ROOT}/{address}/numa_status") or ""
    match = re.search(r"^Node:\s*([0-9]{1,5})\s*$", text, re.MULTILINE)
    return None if match is None else int(match[1])


def nearest_cpu_nodes(tree: Tree, topology: Topology, node: int) -> tuple[int, ...] | None:
    """Return the nodes with CPUs that are nearest to a node: the node itself if it has CPUs; None where unknown.

    For a node without CPUs (a GPU's memory) these are the nodes with CPUs among its best initiators in ``access1``
    (CPUs only), else in ``access0`` (any initiator), else those at the smallest SLIT distance.
    """
    with_cpus = cpu_nodes(topology)
    if node in with_cpus:
        return (node,)
    if node not in {known.id for known in topology.nodes}:
        return None
    for access in ("access1", "access0"):
        initiators = numbered(tree.names(f"{NODE_ROOT}/node{node}/{access}/initiators"), "node")
        near = tuple(initiator for initiator in initiators if initiator in with_cpus)
        if near:
            return near
    row = topology.node(node).distances or {}
    distances = {other: row[other] for other in with_cpus if row.get(other, 0) not in NO_DISTANCE}
    near = tuple(other for other in distances if distances[other] == min(distances.values()))
    return near if near and informs(topology, near) else None


def cpu_nodes(topology: Topology) -> tuple[int, ...]:
    """Return the nodes with online CPUs."""
    return tuple(node.id for node in topology.nodes if node.cpus)


def informs(topology: Topology, nodes: tuple[int, ...]) -> bool:
    """Return whether these CPU nodes locate a device: all of several nodes do not."""
    every = cpu_nodes(topology)
    return bool(nodes) and (len(every) == 1 or len(nodes) < len(every))


def _local_cpus(tree: Tree, folder: str) -> set[int]:
    for name, parse in (("local_cpulist", parse_id_list), ("local_cpus", parse_mask)):
        text = read_text(tree, f"{folder}/{name}")
        if text:
            try:
                return set(parse(text))
            except IDListError:
                continue
    return set()
