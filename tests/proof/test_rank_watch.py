"""What is reported of a rank that is watched: memory that has moved, and CPU time that others took."""

from __future__ import annotations

import pytest

from ompaffinity.proof.compare import verdict_of_timeline
from ompaffinity.proof.foreign import CPUTimes
from ompaffinity.proof.rank_watch import RankWatch
from ompaffinity.proof.surroundings import Surroundings
from ompaffinity.proof.tree import Member
from tests.proof.observations import PLACEMENT, process, timeline, window

GIB = 2**30
MAIN, SECOND, ALL = PLACEMENT.places[0], PLACEMENT.places[1], PLACEMENT.affinity
TEAM = window((MAIN, 1.0), (SECOND, 1.0))


def changes(*readings: tuple[dict[int, int], bool]) -> list[str]:
    """Return the kinds of changes that readings of where the pages are lead to; each may be complete or not."""
    rank = RankWatch(PLACEMENT, PLACEMENT)
    return [
        change.kind
        for pages, complete in readings
        for change in rank.remember_memory(pages, complete=complete, repair=False)
    ]


def test_memory_that_moves_to_another_node_is_reported() -> None:
    assert changes(({1: 4 * GIB}, True), ({1: GIB, 0: 3 * GIB}, True)) == ["memory-moved"]


@pytest.mark.parametrize(
    "later",
    [
        {1: 4 * GIB, 0: 8 * GIB},
        {1: 9 * GIB, 0: GIB},
        {1: GIB},
        {1: 4 * GIB - 2**20, 0: 2**20},
        {1: 4 * GIB - GIB // 4, 0: GIB // 4},
    ],
    ids=["new memory elsewhere", "new memory everywhere", "freed", "little", "less than a tenth"],
)
def test_what_has_not_moved_is_not_reported(later: dict[int, int]) -> None:
    assert changes(({1: 4 * GIB}, True), (later, True)) == []


def test_a_part_of_the_memory_proves_nothing() -> None:
    assert changes(({1: 4 * GIB}, True), ({0: 3 * GIB}, False), ({1: 4 * GIB}, True)) == []


def test_it_is_reported_once() -> None:
    moved = ({1: GIB, 0: 3 * GIB}, True)
    assert changes(({1: 4 * GIB}, True), moved, moved) == ["memory-moved"]


def test_a_rank_without_memory_nodes_has_no_remote_memory() -> None:
    rank = RankWatch(PLACEMENT._replace(nodes=()), PLACEMENT._replace(nodes=()))
    assert list(rank.remember_memory({0: GIB}, complete=True, repair=False)) == []
    assert rank.status(0.0).remote_bytes is None


def surroundings(share: float, stolen: float = 0.0) -> Surroundings:
    """Return surroundings in which others took this part of the time of each CPU, and the hypervisor a part of that."""
    before = CPUTimes(0.0, dict.fromkeys(ALL, 0.0), dict.fromkeys(ALL, 0.0))
    after = CPUTimes(10.0, dict.fromkeys(ALL, 10 * share), dict.fromkeys(ALL, 10 * share * stolen))
    return Surroundings(before, after, {}, frozenset(ALL), {}, (100,))


def watched(*checks: Surroundings) -> RankWatch:
    """Return a rank whose team works as planned, after these checks."""
    rank, state, found = RankWatch(PLACEMENT, PLACEMENT), process(MAIN, SECOND), timeline(PLACEMENT, TEAM, TEAM)
    for around in checks:
        rank.check(Member(state, 2, PLACEMENT), found, verdict_of_timeline(found, state), around)
    return rank


@pytest.mark.parametrize(("share", "crowded"), [(0.05, 0), (0.06, 2)])
def test_cpus_are_crowded_where_others_take_more_than_a_twentieth(share: float, crowded: int) -> None:
    assert watched(*[surroundings(share)] * 2).crowded_checks == crowded


def test_a_check_with_idle_cpus_ends_a_row_of_crowded_ones() -> None:
    assert watched(surroundings(0.5), surroundings(0.0), surroundings(0.5)).crowded_checks == 1


@pytest.mark.parametrize(("stolen", "is_cause"), [(0.5, False), (0.6, True)])
def test_the_hypervisor_is_the_cause_where_it_stole_more_than_half(stolen: float, is_cause: bool) -> None:
    change = watched(surroundings(0.5, stolen)).competitors("process 7 (other)")
    assert change.message == "other processes took 50% of the CPU time of its CPUs"
    assert change.cause == ("the hypervisor ran other guests (steal)" if is_cause else "process 7 (other)")


def test_a_rank_is_lost_after_more_checks_without_a_process_than_allowed() -> None:
    rank = watched(surroundings(0.0))
    assert [rank.lost(2) for _ in range(3)] == [False, False, True]
