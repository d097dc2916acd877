"""NVIDIA GPUs from NVML, through nvidia-ml-py (the extra ``[nvidia]``). CUDA is not initialised.

A query fails where the driver is old, the board does not support it or the GPU is lost. A failed query only omits its
own answer. Source: the NVML API reference.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.devices.pci import cpu_nodes, located, own_memory, pci_address
from ompaffinity.devices.visibility import NVIDIA, PhysicalGPU
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ompaffinity.devices.pci import Answer
    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree

WORD_BITS = 64


class DriverView(NamedTuple):
    """What a vendor's library reports: its GPUs, {PCI address: answers}, and why it failed (None: it did not).

    `complete`: these are all GPUs of this process, also where the PCI bus shows more (containers).
    """

    gpus: tuple[PhysicalGPU, ...] = ()
    answers: dict[str, list[Answer]] | None = None
    problem: str | None = None
    complete: bool = False


def read_nvml(tree: Tree, topology: Topology) -> DriverView:
    """Return what NVML reports about every GPU of this machine, visible or not."""
    try:
        import pynvml
    except ImportError:
        return DriverView(problem="nvidia-ml-py is not installed (the extra [nvidia])")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return DriverView(problem=str(error))
    try:
        return _read(pynvml, tree, topology)
    except (pynvml.NVMLError, AttributeError) as error:
        return DriverView(problem=str(error))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read(nvml: Any, tree: Tree, topology: Topology) -> DriverView:
    devices, answers = [], {}
    count = nvml.nvmlDeviceGetCount()
    for index in range(count):
        handle = _query(nvml, "nvmlDeviceGetHandleByIndex", index)
        if handle is None:
            continue
        address = pci_address(_text(_query(nvml, "nvmlDeviceGetPciInfo", handle, field="busId")))
        if address is None:
            continue
        devices.append(
            PhysicalGPU(
                address,
                NVIDIA,
                _text(_query(nvml, "nvmlDeviceGetName", handle)),
                _text(_query(nvml, "nvmlDeviceGetUUID", handle)),
                tuple(_parts(nvml, handle)),
            )
        )
        answers[address] = list(_answers(nvml, handle, tree, topology))
    return DriverView(tuple(devices), answers, complete=0 < len(devices) == count)


def _parts(nvml: Any, handle: Any) -> Iterable[str]:
    """Yield the UUIDs of the MIG instances of a GPU."""
    mode = _query(nvml, "nvmlDeviceGetMigMode", handle)
    if not mode or not mode[0]:
        return
    for index in range(_query(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        part = _query(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        uuid = None if part is None else _query(nvml, "nvmlDeviceGetUUID", part)
        if uuid is not None:
            yield _text(uuid)


def _answers(nvml: Any, handle: Any, tree: Tree, topology: Topology) -> Iterable[Answer]:
    """Yield the memory affinity, the CPU affinity and the GPU's own node. A mask of all nodes has no information."""
    with_cpus = cpu_nodes(topology)
    if not with_cpus:
        return
    words = max(node.id for node in topology.nodes) // WORD_BITS + 1
    scope = getattr(nvml, "NVML_AFFINITY_SCOPE_NODE", 0)
    mask = _query(nvml, "nvmlDeviceGetMemoryAffinity", handle, words, scope)
    if mask is not None:
        nodes = _bits(mask)
        near = tuple(node for node in with_cpus if node in nodes)
        yield located("nvml-memory", "memory affinity is that", near, topology)
    words = max(cpu.id for cpu in topology.cpus) // WORD_BITS + 1
    mask = _query(nvml, "nvmlDeviceGetCpuAffinity", handle, words)
    if mask is not None:
        cpus = _bits(mask)
        near = tuple(node for node in with_cpus if cpus & set(topology.node(node).cpus))
        yield located("nvml-cpu", "CPU affinity is that", near, topology)
    own = _query(nvml, "nvmlDeviceGetNumaNodeId", handle)
    if own is not None:
        yield own_memory(own, tree, topology)


def _query(nvml: Any, function: str, *arguments: Any, field: str | None = None) -> Any:
    """Return the result of a function, None where the driver, the board or this binding does not support it."""
    try:
        answer = getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None
    return answer if field is None else getattr(answer, field)


def _bits(words: Iterable[int]) -> set[int]:
    return {index * WORD_BITS + bit for index, word in enumerate(words) for bit in range(WORD_BITS) if word >> bit & 1}


def _text(value: object) -> str:
    """Return text; older bindings return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
