"""A plan whose memory policies are those that the kernel grants here: found out before a worker starts."""

from __future__ import annotations

from ompaffinity.memory.ladder import granted_policy
from ompaffinity.records import Message
from ompaffinity.topology.idlist import format_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.errors import BindingError
    from ompaffinity.memory.ladder import GrantedPolicy
    from ompaffinity.placement.plan import Plan, RankPlacement


def with_granted_memory(plan: Plan) -> Plan:
    """Return the plan with the memory policies that the kernel grants, and a warning for what it does not.

    Each policy is tried in a thread that ends with it. Nodes that are nearly full under ``bind`` are told of as well.
    """
    found: dict[tuple[str, tuple[int, ...]], GrantedPolicy] = {}
    ranks = []
    for rank in plan.ranks:
        asked = (rank.memory_policy, rank.nodes)
        if rank.memory_policy != "none" and rank.nodes and asked not in found:
            found[asked] = granted_policy(*asked)
        ranks.append(with_memory_policy(rank, found[asked]) if asked in found else rank)
    return plan._replace(ranks=tuple(ranks), warnings=(*plan.warnings, *_messages(plan, found)))


def with_memory_policy(placement: RankPlacement, granted: GrantedPolicy) -> RankPlacement:
    """Return the placement with the policy that was granted; without any it still names its nodes."""
    if granted.policy == "none":
        return placement._replace(memory_policy="none")
    if granted.nodes == placement.nodes:
        # Which of the two forms of "preferred" the kernel was told says nothing new.
        kept = granted.refusal is None
        return placement if kept else placement._replace(memory_policy=granted.policy)
    ranks = dict(zip(placement.nodes, placement.node_ranks))
    return placement._replace(
        memory_policy=granted.policy,
        nodes=granted.nodes,
        node_ranks=tuple(ranks[node] for node in granted.nodes if node in ranks),
    )


def refusal_message(whom: str, placement: RankPlacement, refusal: BindingError, granted: GrantedPolicy) -> Message:
    """Return the warning that the policy of a placement is not to be had, what there is instead, and the remedy."""
    instead = "none" if granted.policy == "none" else f"{granted.policy} {format_id_list(granted.nodes)}"
    wanted = f"{placement.memory_policy} {format_id_list(placement.nodes)}"
    return Message(refusal.code, "warning", f"{whom}: memory policy {instead} instead of {wanted}, for {refusal}")


def _messages(plan: Plan, found: dict[tuple[str, tuple[int, ...]], GrantedPolicy]) -> Iterator[Message]:
    told = set()
    for (policy, nodes), granted in found.items():
        alike = [rank for rank in plan.ranks if (rank.memory_policy, rank.nodes) == (policy, nodes)]
        if granted.refusal is not None:
            # One reason for all, as a rule: it is told once.
            if granted.refusal.code not in told:
                told.add(granted.refusal.code)
                refused = [rank for rank in plan.ranks if _is_refused(found.get((rank.memory_policy, rank.nodes)))]
                yield refusal_message(_called(refused), alike[0], granted.refusal, granted)
        elif granted.policy == "bind":
            from ompaffinity.memory.capacity import full_nodes

            text = full_nodes(nodes)
            if text is not None:
                yield Message("memory-nearly-full", "warning", f"{_called(alike)}: {text}")


def _is_refused(granted: GrantedPolicy | None) -> bool:
    return granted is not None and granted.refusal is not None


def _called(ranks: list[RankPlacement]) -> str:
    return f"rank {format_id_list(rank.rank for rank in ranks)}"
