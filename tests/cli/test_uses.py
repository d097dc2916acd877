from __future__ import annotations

import pytest

from ompaffinity.cli.uses import BARRED, FREE, IDLE, OFFLINE, SIBLING, STATES, Use, memory_in_words, rank_label, uses
from ompaffinity.placement.model import LeftOut, RankPlacement
from tests.placement.machines import plan_for, synthetic


def test_cpus_of_a_machine_without_a_plan() -> None:
    machine = synthetic("core:4 pu:1")
    changed = [
        machine.cpus[0],
        machine.cpus[1]._replace(isolated=True),
        machine.cpus[2]._replace(allowed=False, isolated=True),
        machine.cpus[3]._replace(online=False, allowed=False),
    ]
    assert uses(machine._replace(cpus=tuple(changed)), None) == {
        0: Use(None, False, "allowed", (), FREE),
        1: Use(None, False, "isolated", (), IDLE),
        2: Use(None, False, "not allowed", (), BARRED),
        3: Use(None, False, "offline", (), OFFLINE),
    }


def test_cpus_that_a_plan_leaves_out_are_drawn_by_their_reason() -> None:
    machine = synthetic("core:8 pu:1")
    machine = machine._replace(cpus=tuple(cpu._replace(online=cpu.id != 7) for cpu in machine.cpus))
    reasons = ("smt-sibling", "quota", "not-allowed", "offline")
    left_out = tuple(LeftOut((cpu,), reason, "why") for cpu, reason in enumerate(reasons, 4))
    found = uses(machine, plan_for("core:8 pu:1", 1, bind=((0, 1, 2, 3),))._replace(left_out=left_out))
    assert {cpu: found[cpu] for cpu in range(4, 8)} == {
        4: Use(None, False, "smt-sibling: why", (), SIBLING),
        5: Use(None, False, "quota: why", (), STATES["quota"]),
        6: Use(None, False, "not-allowed: why", (), BARRED),
        7: Use(None, False, "offline: why", (), OFFLINE),
    }


def test_a_cpu_of_several_ranks_has_the_first_and_the_others() -> None:
    plan = plan_for("core:4 pu:1", 3)
    ranks = (
        RankPlacement(0, 0, cpus=(0, 1), helper_cpus=(2, 3)),
        RankPlacement(1, 1, cpus=(2,), helper_cpus=(3,)),
        RankPlacement(2, 2, cpus=(1,), helper_cpus=(3,)),
    )
    assert uses(synthetic("core:4 pu:1"), plan._replace(ranks=ranks)) == {
        0: Use(0, False, "rank 0, thread 0"),
        1: Use(0, False, "rank 0, thread 1; rank 2, thread 0", (2,)),
        2: Use(0, False, "rank 0, helper threads; rank 1, thread 0", (1,)),
        3: Use(0, True, "rank 0, helper threads; rank 1, helper threads; rank 2, helper threads", (1, 2)),
    }


@pytest.mark.parametrize(
    ("rank", "others", "label"), [(None, (), ""), (3, (), "r3"), (0, (1,), "r0,1"), (0, (1, 2), "r0,1...")]
)
def test_a_label_has_at_most_two_ranks(rank: int | None, others: tuple[int, ...], label: str) -> None:
    assert rank_label(Use(rank, False, "", others)) == label


@pytest.mark.parametrize(
    ("policy", "nodes", "words"),
    [
        ("none", (), "any"),
        ("none", (1,), "any, near 1"),
        ("bind", (0,), "bind 0"),
        ("interleave", (0, 1), "interleave 0-1"),
    ],
)
def test_memory_in_words(policy: str, nodes: tuple[int, ...], words: str) -> None:
    assert memory_in_words(RankPlacement(0, 0, nodes=nodes, memory_policy=policy)) == words
