"""Which of several sources is believed of where a GPU is, and what to say where they differ. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.devices.pci import cpu_nodes
from ompaffinity.ids import format_id_list
from ompaffinity.messages import DEVICE_NODE_UNKNOWN, DEVICE_SOURCES_DISAGREE, NOTE, WARNING, Message

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
    """Return the answer of the most trusted source that has one, and the messages: unknown, or sources that differ.

    Each GPU is settled by itself. A machine with one CPU node needs no source. `label` names the GPU in messages.
    """
    ordered = sorted(answers, key=lambda answer: TRUST.index(answer.source))
    known = [answer for answer in ordered if answer.nodes]
    with_cpus = cpu_nodes(topology)
    if not known and len(with_cpus) <= 1:
        return Settled(with_cpus, "only-node" if with_cpus else None), []
    if not known:
        reason = "; ".join(f"{answer.source}: {answer.detail}" for answer in ordered) or "no source reports it"
        return Settled((), None), [DEVICE_NODE_UNKNOWN(gpu=label, reason=reason)]
    first = known[0]
    believed = set(first.nodes or ())
    others = [answer for answer in known[1:] if not believed & set(answer.nodes or ())]
    if not others:
        return Settled(first.nodes or (), first.source), []
    all_answers = ", ".join(f"{answer.source} {format_id_list(answer.nodes or ())}" for answer in (first, *others))
    # The user gets what the user named; the other sources are for information.
    level = NOTE if first.source == USER else WARNING
    found = DEVICE_SOURCES_DISAGREE(level=level, gpu=label, answers=all_answers, source=first.source)
    return Settled(first.nodes or (), first.source), [found]
