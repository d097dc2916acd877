"""A plan with the memory policies that the kernel accepts, and the warnings about those that it rejects."""

from __future__ import annotations

import pytest

from ompaffinity.bind import capacity
from ompaffinity.bind.capacity import MachineMemory
from ompaffinity.bind.memory_fallbacks import with_accepted_memory
from ompaffinity.placement.model import Plan
from tests.bind.test_policy_fallbacks import kernel_that_supports
from tests.placement.machines import plan_for

GIB = 2**30
ROOMY = MachineMemory({0: 64 * GIB, 1: 64 * GIB}, {0: 60 * GIB, 1: 60 * GIB}, None, None)


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "machine_memory", lambda: ROOMY)


def two_nodes(ranks: int = 2, policy: str = "bind") -> Plan:
    """Return a plan for two nodes whose only messages are about memory."""
    return plan_for("numa:2 core:8 pu:1", ranks, memory_policy=policy)._replace(messages=())


def test_a_plan_that_the_kernel_accepts_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel_that_supports(monkeypatch, "bind")
    plan = two_nodes()
    assert with_accepted_memory(plan) == plan
    assert asked == [("bind", (0,)), ("bind", (1,))]


def test_ranks_that_are_refused_alike_have_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_that_supports(monkeypatch, "preferred")
    accepted = with_accepted_memory(two_nodes())
    assert [(rank.memory_policy, rank.nodes) for rank in accepted.ranks] == [("preferred", (0,)), ("preferred", (1,))]
    (message,) = accepted.messages
    assert message.level == "warning"
    assert message.message.startswith("rank 0-1: memory policy preferred 0 instead of bind 0")


def test_ranks_that_fall_back_differently_have_a_warning_each(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_that_supports(monkeypatch, "preferred")
    plan = two_nodes()
    mixed = plan._replace(ranks=(plan.ranks[0], plan.ranks[1]._replace(memory_policy="interleave")))
    texts = [message.message for message in with_accepted_memory(mixed).messages]
    assert [text.partition(" (")[0].partition(";")[0].partition(":")[0] for text in texts] == ["rank 0", "rank 1"]
    assert "instead of interleave 1" in texts[1]


def test_a_refused_rank_without_any_fallback_has_no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_that_supports(monkeypatch)
    accepted = with_accepted_memory(two_nodes(1))
    assert [rank.memory_policy for rank in accepted.ranks] == ["none"]
    assert "memory policy none instead of bind 0" in accepted.messages[0].message


def test_a_plan_may_keep_what_was_refused_with_the_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_that_supports(monkeypatch, "preferred")
    plan = two_nodes()
    kept = with_accepted_memory(plan, replace=False)
    assert kept.ranks == plan.ranks
    assert len(kept.messages) == 1
    assert with_accepted_memory(kept, replace=False).messages == kept.messages


def test_ranks_with_the_same_policy_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel_that_supports(monkeypatch, "bind")
    with_accepted_memory(two_nodes(4))
    assert asked == [("bind", (0,)), ("bind", (1,))]


def test_nothing_is_tried_for_ranks_without_a_policy_or_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel_that_supports(monkeypatch, "bind")
    plan = two_nodes()
    without = plan._replace(ranks=(plan.ranks[0]._replace(memory_policy="none"), plan.ranks[1]._replace(nodes=())))
    assert with_accepted_memory(without) == without
    assert asked == []


@pytest.mark.parametrize(("policy", "codes"), [("bind", ["memory-nearly-full"]), ("preferred", [])])
def test_a_node_that_is_nearly_full_is_named_where_ranks_are_bound_to_it(
    monkeypatch: pytest.MonkeyPatch, policy: str, codes: list[str]
) -> None:
    kernel_that_supports(monkeypatch, "bind", "preferred")
    full = MachineMemory({0: 64 * GIB, 1: 4 * GIB}, {0: 60 * GIB, 1: GIB // 8}, None, None)
    monkeypatch.setattr(capacity, "machine_memory", lambda: full)
    messages = with_accepted_memory(two_nodes(policy=policy)).messages
    assert [message.code for message in messages] == codes
    if codes:
        assert messages[0].message.startswith("rank 1: node 1 has 128 MiB available of 4096 MiB")
