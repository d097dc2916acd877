"""The NUMA node of a GPU from several sources, and the messages where they differ. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.devices.pci import cpu_nodes
from ompaffinity.ids import format_id_list
from ompaffinity.messages import DEVICE_NODE_UNKNOWN, DEVICE_SOURCES_DISAGREE, NOTE, WARNING, Message
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.devices.pci import Answer
    from ompaffinity.topology.model import Topology

USER = "user"


TRUST = (USER, "sysfs", "nvml-memory", "nvml-cpu", "amdsmi", "own-memory", "bridge", "local-cpus")
"""The sources in order of precedence.

The user (--numa-bind-nodes) overrides all others. sysfs has the value of the firmware (_PXM); where that is unset, the
driver may have one. The node of a GPU's own memory is near the GPU's CPU node, but not equal to it.
"""


class Settled(NamedTuple):
    """The NUMA nodes with CPUs that are local to a GPU (none: unknown), and the source that reports them."""

    nodes: tuple[int, ...]
    source: str | None


def settle(label: str, answers: Iterable[Answer], topology: Topology) -> tuple[Settled, list[Message]]:
    """Return the first known answer in order of precedence, and messages about unknown nodes or differing sources.

    Each GPU is settled independently. A machine with one CPU node needs no source. `label` names the GPU in messages.
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
    used = set(first.nodes or ())
    others = [answer for answer in known[1:] if not used & set(answer.nodes or ())]
    if not others:
        return Settled(first.nodes or (), first.source), []
    all_answers = ", ".join(f"{answer.source} {format_id_list(answer.nodes or ())}" for answer in (first, *others))
    # The user's choice is used in any case, so the difference is only a note.
    level = NOTE if first.source == USER else WARNING
    message = DEVICE_SOURCES_DISAGREE(level=level, gpu=label, answers=all_answers, source=first.source)
    return Settled(first.nodes or (), first.source), [message]
