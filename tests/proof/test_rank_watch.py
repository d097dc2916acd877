"""What is reported of a rank that is watched: memory that has moved, and CPU time that others took."""

from __future__ import annotations

import os

import pytest

from ompaffinity.proof.compare import verdict_of_timeline
from ompaffinity.proof.foreign import CPUTimes
from ompaffinity.proof.observe import ProcessState
from ompaffinity.proof.rank_watch import RankWatch
from ompaffinity.proof.surroundings import Surroundings
from ompaffinity.proof.timeline import Timeline
from ompaffinity.proof.tree import Member
from tests.proof.observations import PLACEMENT, SECONDS, process, timeline, window

GIB = 2**30
MAIN, SECOND, ALL = PLACEMENT.places[0], PLACEMENT.places[1], PLACEMENT.affinity
TEAM = window((MAIN, 1.0), (SECOND, 1.0))
TEAM_STATE = process(MAIN, SECOND)


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


def check(rank: RankWatch, found: Timeline, state: ProcessState = TEAM_STATE, alive: tuple[int, ...] = ()) -> list[str]:
    """Check a rank whose process shows these windows; return the kinds of changes."""
    around = surroundings(0.0)._replace(alive=alive)
    member = Member(state, 2, PLACEMENT)
    return [change.kind for change in rank.check(member, found, verdict_of_timeline(found, state), around)]


def test_a_team_that_stays_as_it_was_proven_is_no_change() -> None:
    rank, found = RankWatch(PLACEMENT, PLACEMENT), timeline(PLACEMENT, TEAM, TEAM)
    assert check(rank, found) == ["verdict"]
    assert check(rank, found) == []
    assert (rank.status(0.0).verdict, rank.status(0.0).restarts, rank.status(0.0).busy_threads) == ("holds", 0, 2)


def test_the_status_names_the_differences_of_a_team_that_has_not_drifted() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    crowded = window((MAIN, 1.0), (SECOND, 1.0), (SECOND, 1.0))
    assert check(rank, timeline(PLACEMENT, crowded, crowded)) == ["verdict"]
    assert rank.status(0.0).differences == ("team: 2 busy threads are bound to CPU 5, the plan has 1 there",)
    check(rank, timeline(PLACEMENT, TEAM, TEAM))
    assert (rank.status(0.0).verdict, rank.status(0.0).differences) == ("holds", ())


def test_a_proven_team_that_idles_still_holds() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    check(rank, timeline(PLACEMENT, TEAM, TEAM))
    check(rank, timeline(PLACEMENT, *[window((MAIN, 0.0), (SECOND, 0.0))] * 2))
    assert (rank.was_proven, rank.status(0.0).verdict) == (True, "holds")


def test_a_team_that_was_seen_in_one_window_is_not_proven() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    check(rank, timeline(PLACEMENT, TEAM))
    assert (rank.was_proven, rank.status(0.0).verdict) == (False, "unproven")


def test_the_status_names_the_threads_that_have_drifted() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    check(rank, timeline(PLACEMENT, TEAM, TEAM))
    assert check(rank, timeline(PLACEMENT, TEAM, TEAM), process(MAIN, (6,))) == ["threads-rebound"]
    assert rank.status(0.0).differences == ("thread 101 may run on CPU 6, the plan requires 5",)


def test_the_end_of_a_process_is_reported_once() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    check(rank, timeline(PLACEMENT, TEAM, TEAM))
    assert [change.kind for change in rank.ended()] == ["rank-ended"]
    assert list(rank.ended()) == []
    assert (rank.status(0.0).pid, rank.status(0.0).verdict) == (None, "unproven")


@pytest.mark.parametrize(
    ("later", "alive", "kind", "restarts"),
    [
        (process(MAIN, SECOND, pid=200), (200,), "rank-restarted", 1),
        (process(MAIN, SECOND, pid=200), (100, 200), "rank-moved", 0),
        (TEAM_STATE._replace(start_time=1), (100,), "rank-restarted", 1),
    ],
    ids=["new process", "both live", "number used again"],
)
def test_another_process_of_a_rank_is_reported(
    later: ProcessState, alive: tuple[int, ...], kind: str, restarts: int
) -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    check(rank, timeline(PLACEMENT, TEAM, TEAM))
    assert check(rank, timeline(PLACEMENT), later, alive)[0] == kind
    status = rank.status(0.0)
    assert (status.pid, status.restarts, status.busy_threads) == (later.pid, restarts, None)


def test_the_time_that_threads_wait_is_counted_once_per_window() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    found = timeline(PLACEMENT, *[window((MAIN, 0.8), (SECOND, 0.6), delay=0.2)] * 2)
    for _ in range(2):
        check(rank, found)
    status = rank.status(0.0)
    # Of each of two threads in two windows of half a second.
    assert status.delay_seconds == pytest.approx(4 * 0.2 * SECONDS)
    assert status.delay_share == pytest.approx(0.2)


def test_no_thread_waits_in_an_idle_window() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    check(rank, timeline(PLACEMENT, window((MAIN, 0.0), (SECOND, 0.0))))
    assert (rank.status(0.0).delay_share, rank.status(0.0).delay_seconds) == (0.0, 0.0)


@pytest.mark.parametrize(("policy", "repair"), [("none", True), ("bind", False)])
def test_memory_is_moved_back_only_by_a_repair_and_with_a_policy(policy: str, repair: bool) -> None:
    placement = PLACEMENT._replace(memory_policy=policy)
    rank, state, found = RankWatch(placement, placement), process(MAIN, SECOND, pid=os.getpid()), timeline(placement)
    rank.check(Member(state, 2, placement), found, verdict_of_timeline(found, state), surroundings(0.0))
    assert rank.pid == os.getpid()
    list(rank.remember_memory({1: 4 * GIB}, complete=True, repair=repair))
    moved = list(rank.remember_memory({1: GIB, 0: 3 * GIB}, complete=True, repair=repair))
    assert [change.kind for change in moved] == ["memory-moved"]


def test_names_the_nodes_that_memory_has_moved_to() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    list(rank.remember_memory({1: 4 * GIB}, complete=True, repair=False))
    (change,) = rank.remember_memory({1: GIB, 0: 2 * GIB, 2: GIB}, complete=True, repair=False)
    assert change.message == "2048 MiB on node 0, 1024 MiB on node 2, the plan requires node 1"


def test_memory_of_a_rank_without_a_process_is_not_moved_back() -> None:
    rank = RankWatch(PLACEMENT, PLACEMENT)
    list(rank.remember_memory({1: 4 * GIB}, complete=True, repair=True))
    moved = list(rank.remember_memory({1: GIB, 0: 3 * GIB}, complete=True, repair=True))
    assert [change.kind for change in moved] == ["memory-moved"]
