"""NVIDIA's GPUs by NVML, through nvidia-ml-py (the extra ``[nvidia]``). CUDA is not initialised.

Source: the NVML API reference. What a function does not say, for the driver is old, the board does not support it or
the GPU is lost, is left out: each GPU and each question for itself.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.devices.pci import cpu_nodes, located, own_memory, pci_address
from ompaffinity.devices.visibility import NVIDIA, PhysicalGPU

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ompaffinity.devices.pci import Answer
    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree

WORD_BITS = 64


class DriverView(NamedTuple):
    """What a vendor's library says: its GPUs, {address: answers}, and why it says nothing (None: it does).

    `complete`: these are all GPUs that there are for this process, whatever the bus shows (a container's are fewer).
    """

    gpus: tuple[PhysicalGPU, ...] = ()
    answers: dict[str, list[Answer]] | None = None
    problem: str | None = None
    complete: bool = False


def read_nvml(tree: Tree, topology: Topology) -> DriverView:
    """Return what NVML says of every GPU of this machine, whatever is visible."""
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
        handle = _asked(nvml, "nvmlDeviceGetHandleByIndex", index)
        if handle is None:
            continue
        address = pci_address(_text(_asked(nvml, "nvmlDeviceGetPciInfo", handle, field="busId")))
        if address is None:
            continue
        devices.append(
            PhysicalGPU(
                address,
                NVIDIA,
                _text(_asked(nvml, "nvmlDeviceGetName", handle)),
                _text(_asked(nvml, "nvmlDeviceGetUUID", handle)),
                tuple(_parts(nvml, handle)),
            )
        )
        answers[address] = list(_answers(nvml, handle, tree, topology))
    return DriverView(tuple(devices), answers, complete=0 < len(devices) == count)


def _parts(nvml: Any, handle: Any) -> Iterable[str]:
    """Yield the UUIDs of the MIG instances of a GPU."""
    mode = _asked(nvml, "nvmlDeviceGetMigMode", handle)
    if not mode or not mode[0]:
        return
    for place in range(_asked(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        part = _asked(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
        uuid = None if part is None else _asked(nvml, "nvmlDeviceGetUUID", part)
        if uuid is not None:
            yield _text(uuid)


def _answers(nvml: Any, handle: Any, tree: Tree, topology: Topology) -> Iterable[Answer]:
    """Yield NVML's memory affinity, its CPU affinity and the GPU's own node. A mask of all nodes tells nothing."""
    with_cpus = cpu_nodes(topology)
    if not with_cpus:
        return
    words = max(node.id for node in topology.nodes) // WORD_BITS + 1
    scope = getattr(nvml, "NVML_AFFINITY_SCOPE_NODE", 0)
    mask = _asked(nvml, "nvmlDeviceGetMemoryAffinity", handle, words, scope)
    if mask is not None:
        nodes = _bits(mask)
        near = tuple(node for node in with_cpus if node in nodes)
        yield located("nvml-memory", "memory affinity is that", near, topology)
    words = max(cpu.id for cpu in topology.cpus) // WORD_BITS + 1
    mask = _asked(nvml, "nvmlDeviceGetCpuAffinity", handle, words)
    if mask is not None:
        cpus = _bits(mask)
        near = tuple(node for node in with_cpus if cpus & set(topology.node(node).cpus))
        yield located("nvml-cpu", "CPU affinity is that", near, topology)
    own = _asked(nvml, "nvmlDeviceGetNumaNodeId", handle)
    if own is not None:
        yield own_memory(own, tree, topology)


def _asked(nvml: Any, function: str, *arguments: Any, field: str | None = None) -> Any:
    """Return the answer of a function, None where the driver, the board or this binding has none."""
    try:
        answer = getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None
    return answer if field is None else getattr(answer, field)


def _bits(words: Iterable[int]) -> set[int]:
    return {place * WORD_BITS + bit for place, word in enumerate(words) for bit in range(WORD_BITS) if word >> bit & 1}


def _text(value: object) -> str:
    """Return text that older bindings give as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
