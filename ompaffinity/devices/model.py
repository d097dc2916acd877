"""A GPU, a list of GPUs, and where each one is. Records only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.errors import TopologyError
from ompaffinity.ids import format_id_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ompaffinity.devices.pci import Answer
    from ompaffinity.messages import Message
    from ompaffinity.topology.model import Topology


class GPU(NamedTuple):
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


class GPUList(NamedTuple):
    """The GPUs by their numbers in this process, the messages, and what each driver library said of itself."""

    gpus: tuple[GPU, ...]
    messages: tuple[Message, ...]
    libraries: dict[str, str]

    @classmethod
    def of(
        cls, gpus: Iterable[GPU], messages: Iterable[Message] = (), libraries: Mapping[str, str] | None = None
    ) -> GPUList:
        """Return the list of these GPUs, with what there is to say of all of them and of each."""
        found = tuple(gpus)
        told = (*messages, *(message for device in found for message in device.messages))
        return cls(found, told, dict(libraries or {}))

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
    """Where a GPU is: the NUMA nodes with CPUs that it is next to (none: not known), and what there is to say of it.

    Of one that is `quiet` nothing is said: it is in the plan to be left its part, and its rank is somebody else's.
    """

    nodes: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    quiet: bool = False
    vendor: str = ""


class NoGPUsError(TopologyError):
    """A record of a form that does not tell of GPUs."""
