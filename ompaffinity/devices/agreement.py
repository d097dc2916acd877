"""Which of several sources is believed of where a GPU is, and what to say where they differ. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.devices.pci import cpu_nodes
from ompaffinity.ids import format_id_list
from ompaffinity.messages import Message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.devices.pci import Answer
    from ompaffinity.topology.model import Topology

USER = "user"


TRUST = (USER, "sysfs", "nvml-memory", "nvml-cpu", "amdsmi", "own-memory", "bridge", "local-cpus")
"""The sources, the most trusted first. The user knows best (--numa-bind-nodes). sysfs is what the firmware says (_PXM);
where it says nothing, the driver may know; the node of a GPU's own memory is near, but not the same."""


class Settled(NamedTuple):
    """Where a GPU is: the nodes with CPUs that it is next to (none: unknown), and who says so."""

    nodes: tuple[int, ...]
    source: str | None


def settle(label: str, answers: Iterable[Answer], topology: Topology) -> tuple[Settled, list[Message]]:
    """Return what the most trusted source that knows says, and the messages: unknown, or sources that differ.

    Each GPU for itself: that nothing is known of one says nothing of the others. A machine with one CPU node
    needs no source. `label` is how messages call the GPU.
    """
    told = sorted(answers, key=lambda answer: TRUST.index(answer.source))
    known = [answer for answer in told if answer.nodes]
    with_cpus = cpu_nodes(topology)
    if not known and len(with_cpus) <= 1:
        return Settled(with_cpus, "only-node" if with_cpus else None), []
    if not known:
        said = "; ".join(f"{answer.source}: {answer.detail}" for answer in told) or "no source tells anything"
        return Settled((), None), [unknown_node(label, said)]
    first = known[0]
    believed = set(first.nodes or ())
    others = [answer for answer in known[1:] if not believed & set(answer.nodes or ())]
    if not others:
        return Settled(first.nodes or (), first.source), []
    said = ", ".join(f"{answer.source} {format_id_list(answer.nodes or ())}" for answer in (first, *others))
    text = f"{label}: the sources differ on its NUMA node: {said}; {first.source} is believed"
    # What the user says is had; the rest is for information.
    level = "note" if first.source == USER else "warning"
    return Settled(first.nodes or (), first.source), [Message("device-sources-disagree", level, text)]


def unknown_node(gpu: str, said: str = "no source tells anything") -> Message:
    """Return the warning that nobody knows where a GPU is; `said` is what the sources say."""
    text = (
        f"{gpu}: which NUMA node it is next to is not known ({said}), so its rank stays unbound;"
        " say it with --numa-bind-nodes"
    )
    return Message("device-node-unknown", "warning", text)
