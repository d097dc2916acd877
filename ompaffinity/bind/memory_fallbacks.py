"""A plan whose memory policies are those that the kernel accepts here: found out before a worker starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.bind.capacity import full_nodes
from ompaffinity.bind.mempolicy import accepted_policy
from ompaffinity.ids import format_id_list
from ompaffinity.messages import MEMORY_NEARLY_FULL, REFUSALS, log_debug

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.bind.mempolicy import AcceptedPolicy
    from ompaffinity.messages import Message
    from ompaffinity.placement.model import Plan, RankPlacement


def with_accepted_memory(plan: Plan, *, replace: bool = True) -> Plan:
    """Return the plan with the memory policies that the kernel accepts, and a warning for what it does not.

    Each policy is tried in a thread that ends with it. The nodes of a rank, and what it shares there, stay as planned.
    Nodes that are nearly full under ``bind`` are reported as well. Without `replace` there are only the warnings.
    """
    found: dict[tuple[str, tuple[int, ...]], AcceptedPolicy] = {}
    ranks = []
    for rank in plan.ranks:
        asked = (rank.memory_policy, rank.nodes)
        if rank.memory_policy != "none" and rank.nodes and asked not in found:
            found[asked] = accepted_policy(*asked)
            log_debug("memory policy %s of nodes %s: the kernel accepts %s", *asked, found[asked].policy)
        ranks.append(with_memory_policy(rank, found[asked]) if replace and asked in found else rank)
    new = [message for message in _messages(plan, found) if message not in plan.messages]
    return plan._replace(ranks=tuple(ranks), messages=(*plan.messages, *new))


def with_memory_policy(placement: RankPlacement, accepted: AcceptedPolicy) -> RankPlacement:
    """Return the placement with the policy that was accepted."""
    return placement if accepted.refusal is None else placement._replace(memory_policy=accepted.policy)


def refusal_message(subject: str, policy: str, nodes: tuple[int, ...], accepted: AcceptedPolicy) -> Message | None:
    """Return the warning that the kernel refused a policy, and the policy that it accepted, else None."""
    if accepted.refusal is None:
        return None
    instead = "none" if accepted.policy == "none" else f"{accepted.policy} {format_id_list(accepted.nodes)}"
    consequence = f"memory policy {instead} instead of {policy} {format_id_list(nodes)}"
    return REFUSALS[accepted.refusal.code](subject=subject, consequence=consequence, reason=accepted.refusal)


def full_message(subject: str, accepted: AcceptedPolicy) -> Message | None:
    """Return the warning that the nodes of a ``bind`` policy are nearly full, None if they are not."""
    full = full_nodes(accepted.nodes) if accepted.policy == "bind" else None
    if full is None:
        return None
    nodes, available, total = format_id_list(full.nodes), full.available_bytes / 2**20, full.total_bytes / 2**20
    return MEMORY_NEARLY_FULL(subject=subject, nodes=nodes, available=available, total=total)


def _messages(plan: Plan, found: dict[tuple[str, tuple[int, ...]], AcceptedPolicy]) -> Iterator[Message]:
    """Yield one message for all ranks whose policy was refused for the same kind of reason."""
    reported: set[tuple[str, str, str]] = set()
    for (policy, nodes), accepted in found.items():
        alike = [rank for rank in plan.ranks if (rank.memory_policy, rank.nodes) == (policy, nodes)]
        full = full_message(_subject(alike), accepted)
        if full is not None:
            yield full
        kind = _kind(policy, accepted)
        refused = [rank for rank in plan.ranks if _kind_of(rank, found) == kind]
        message = refusal_message(_subject(refused), policy, nodes, accepted)
        if message is not None and kind not in reported:
            reported.add(kind)
            yield message


def _kind_of(
    rank: RankPlacement, found: dict[tuple[str, tuple[int, ...]], AcceptedPolicy]
) -> tuple[str, str, str] | None:
    accepted = found.get((rank.memory_policy, rank.nodes))
    return None if accepted is None or accepted.refusal is None else _kind(rank.memory_policy, accepted)


def _kind(asked: str, accepted: AcceptedPolicy) -> tuple[str, str, str]:
    return asked, accepted.policy, "" if accepted.refusal is None else accepted.refusal.code


def _subject(ranks: list[RankPlacement]) -> str:
    return f"rank {format_id_list(rank.rank for rank in ranks)}"
