"""A GPU, a list of GPUs, and the NUMA nodes of each. Records only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.ids import format_id_list
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ompaffinity.devices.pci import Answer
    from ompaffinity.messages import Message
    from ompaffinity.topology.model import Topology


class GPU(NamedTuple):
    """A GPU: its number in this process (from 0), its PCI address, and its local NUMA nodes with CPUs.

    `nodes` is empty where they are unknown; `source`, which names where they come from, is then None. `own_node` is
    the NUMA node of the GPU's own memory, None if it has none. `answers` are those of all sources, `messages` those
    about this GPU, `parts` the UUIDs of its MIG instances.
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
        """Return the online CPUs of its nodes, ascending; none where its nodes are unknown."""
        return tuple(sorted(cpu for node in self.nodes for cpu in topology.node(node).cpus))

    def to_document(self, topology: Topology) -> dict[str, Any]:
        """Return the record as plain values, ready for JSON."""
        return self.to_record(topology) | {"uuid": self.uuid}

    def to_record(self, topology: Topology) -> dict[str, Any]:
        """Return the record of a capture: as `to_document`, without the UUID, which is a serial number."""
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


class GPUList(NamedTuple):
    """The GPUs in the order of their numbers, the messages, and {vendor: state of its driver library or ``"ok"``}."""

    gpus: tuple[GPU, ...]
    messages: tuple[Message, ...]
    libraries: dict[str, str]

    @classmethod
    def of(
        cls, gpus: Iterable[GPU], messages: Iterable[Message] = (), libraries: Mapping[str, str] | None = None
    ) -> GPUList:
        """Return the list of these GPUs, with `messages` and those of each GPU."""
        listed = tuple(gpus)
        all_messages = (*messages, *(message for device in listed for message in device.messages))
        return cls(listed, all_messages, dict(libraries or {}))

    def to_document(self, topology: Topology) -> dict[str, Any]:
        """Return the ``ompaffinity.devices/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.devices/1",
            "machine": topology.machine,
            "devices": [device.to_document(topology) for device in self.gpus],
            "libraries": self.libraries,
            "warnings": [message._asdict() for message in self.messages],
        }


class GPUHome(NamedTuple):
    """The local NUMA nodes with CPUs of a GPU (none: unknown), and the messages about them.

    A `quiet` GPU belongs to a rank of another process: the plan keeps its part free and reports nothing about it.
    """

    nodes: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    quiet: bool = False
    vendor: str = ""


class NoGPUsError(TopologyError):
    """A recorded machine in a format without GPUs."""
