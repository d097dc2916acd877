"""The use of each CPU of a machine, for pictures and maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from ompaffinity.placement.model import Plan, RankPlacement
    from ompaffinity.topology.model import LogicalCPUInfo, Topology

FREE, SIBLING, IDLE, BARRED, OFFLINE = "free", "sibling", "idle", "barred", "off"
"""How a CPU without a rank is drawn: allowed (without a plan), next to an OpenMP thread, idle, not usable, offline."""
STATES = {
    "smt-sibling": SIBLING,
    **{reason: f"{IDLE} {reason}" for reason in ("unused-node", "remainder", "quota", "efficiency-core")},
}
"""{reason: how it is drawn}; the other reasons bar a CPU from use. Idle CPUs have a dashed edge of their reason."""


class Use(NamedTuple):
    """The use of a CPU: its rank (None: left out), whether as helper CPU, a description, and other ranks on it.

    `state` is how a CPU without a rank is drawn.
    """

    rank: int | None
    helper: bool
    text: str
    others: tuple[int, ...] = ()
    state: str = SIBLING


def uses(topology: Topology, plan: Plan | None) -> dict[int, Use]:
    """Return {cpu: its use} of a plan, or of a machine without one."""
    if plan is None:
        return {cpu.id: Use(None, False, *_state_of(cpu)) for cpu in topology.cpus}
    offline = {cpu.id for cpu in topology.cpus if not cpu.online}
    use_of: dict[int, Use] = {}
    for group in plan.left_out:
        text, state = f"{group.reason}: {group.detail}", STATES.get(group.reason, BARRED)
        use_of |= {cpu: Use(None, False, text, (), OFFLINE if cpu in offline else state) for cpu in group.cpus}
    for placement in plan.ranks:
        own = [(cpu, True, f"rank {placement.rank}, helper threads") for cpu in placement.helper_cpus]
        own += [(cpu, False, f"rank {placement.rank}, thread {thread}") for thread, cpu in enumerate(placement.cpus)]
        for cpu, helper, text in own:
            first = use_of.get(cpu)
            if first is None or first.rank is None:
                use_of[cpu] = Use(placement.rank, helper, text)
            else:
                others = (*first.others, placement.rank)
                use_of[cpu] = Use(first.rank, first.helper and helper, f"{first.text}; {text}", others)
    return use_of


def _state_of(cpu: LogicalCPUInfo) -> tuple[str, tuple[int, ...], str]:
    """Return the description of a CPU without a plan, no ranks, and how it is drawn."""
    if not cpu.online:
        return ("offline", (), OFFLINE)
    if not cpu.allowed:
        return ("not allowed", (), BARRED)
    return ("isolated", (), IDLE) if cpu.isolated else ("allowed", (), FREE)


def memory_in_words(placement: RankPlacement) -> str:
    """Return the memory policy of a rank with its nodes; without a policy the kernel takes what is near."""
    nodes = format_id_list(placement.nodes)
    if placement.memory_policy == "none":
        return f"any, near {nodes}" if nodes else "any"
    return f"{placement.memory_policy} {nodes}"


def rank_label(use: Use) -> str:
    """Return the ranks of a CPU: ``r3``, ``r0,1``, ``r0,1...``; nothing for none."""
    if use.rank is None:
        return ""
    return f"r{','.join(map(str, (use.rank, *use.others)[:2]))}{'...' if len(use.others) > 1 else ''}"
