"""What counts as drift, and which cause the facts show: rules on synthetic ranks."""

from __future__ import annotations

import pytest

from ompaffinity.proof.drift import (
    RankState,
    change_of_cpus,
    drift_in_words,
    drifted_threads,
    kind_and_cause,
    verdict_of_rank,
)
from ompaffinity.proof.timeline import Outcome
from ompaffinity.proof.verdict import DIFFERS, HOLDS, UNPROVEN
from tests.proof.observations import FLOATING, PLACEMENT

Mask = tuple[int, ...]
ALL = frozenset(range(8))
TEAM: dict[int, Mask] = {100: (4, 6), 101: (5,)}


def rank(
    *masks: Mask,
    team: dict[int, Mask] = TEAM,
    cpuset: frozenset[int] | None = None,
    online: frozenset[int] = ALL,
) -> RankState:
    """Return a rank with a thread for each mask; the first ones are its team."""
    return RankState(100, 1, dict(enumerate(masks, 100)), team, cpuset, online)


def test_a_team_as_it_was_proven_has_not_drifted() -> None:
    assert drifted_threads(PLACEMENT, rank((4, 6), (5,), (4, 5, 6))) == {}


def test_a_thread_of_the_team_must_have_the_mask_that_it_was_proven_with() -> None:
    assert drifted_threads(PLACEMENT, rank((4, 6), (4, 5, 6))) == {101: (5,)}


def test_another_thread_must_stay_within_the_cpus_of_the_rank() -> None:
    state = rank((4, 6), (5,), (6,), (6, 7))
    assert drifted_threads(PLACEMENT, state) == {103: PLACEMENT.affinity}


def test_a_team_that_was_not_proven_must_stay_within_the_cpus_of_the_rank() -> None:
    assert drifted_threads(FLOATING, rank((4,), (4, 5), team={})) == {}
    assert drifted_threads(FLOATING, rank((3,), (4, 5), team={})) == {100: FLOATING.affinity}


def test_an_unbound_rank_does_not_drift() -> None:
    assert drifted_threads(PLACEMENT._replace(bound=False), rank((0,), (1,))) == {}


@pytest.mark.parametrize("missing", [{"online": ALL - {6}}, {"cpuset": ALL - {6}}], ids=["offline", "cpuset"])
def test_cpus_that_are_not_available_do_not_count(missing: dict[str, frozenset[int]]) -> None:
    assert drifted_threads(PLACEMENT, rank((4,), (5,), **missing)) == {}  # type: ignore[arg-type]
    assert drifted_threads(PLACEMENT, rank((4,), (4,), **missing)) == {101: (5,)}  # type: ignore[arg-type]


def kind_of(before: RankState | None, now: RankState) -> str:
    return kind_and_cause(PLACEMENT, before, now, drifted_threads(PLACEMENT, now))[0]


PROVEN = rank((4, 6), (5,), (4, 5, 6))


@pytest.mark.parametrize(
    ("now", "kind"),
    [
        (rank((4, 6), (4, 6), (4, 6), online=ALL - {5}), "cpus-offline"),
        (rank((4,), (4,), (4,), cpuset=frozenset({4})), "cpuset-changed"),
        (rank((0, 1), (0, 1), (0, 1)), "threads-rebound"),
        (rank((4, 6), (7,), (4, 5, 6)), "threads-rebound"),
        (rank((5,), (4,), (4, 5, 6)), "team-repinned"),
        (rank((4, 6), (5,), (4, 5, 6), (7,), (0,)), "team-repinned"),
    ],
)
def test_the_kind_follows_from_what_changed(now: RankState, kind: str) -> None:
    assert kind_of(PROVEN, now) == kind


def test_the_cause_names_all_threads_only_if_all_of_them_have_one_mask() -> None:
    every, one = rank((0,), (0,), (0,)), rank((4, 6), (0,), (4, 5, 6))
    causes = [kind_and_cause(PLACEMENT, PROVEN, now, drifted_threads(PLACEMENT, now))[1] for now in (every, one)]
    assert "all its threads" in causes[0]
    assert "this thread" in causes[1]


def test_a_cpuset_that_lacks_cpus_from_the_start_is_the_cause() -> None:
    now = rank((0,), (0,), cpuset=frozenset({0, 4}))
    kind, cause = kind_and_cause(PLACEMENT, None, now, drifted_threads(PLACEMENT, now))
    assert (kind, cause) == ("cpuset-changed", "the cpuset of its control group (0,4) lacks CPU 5-6")


def test_words_name_the_first_thread_and_count_the_others() -> None:
    now = rank((0,), (0,), (4, 5, 6))
    words = drift_in_words(now, drifted_threads(PLACEMENT, now))
    assert words == "thread 100 may run on CPU 0, the plan requires 4,6 (and 1 more thread like it)"


def test_a_change_of_available_cpus_is_reported_without_drift() -> None:
    offline, narrow = PROVEN._replace(online=ALL - {5}), PROVEN._replace(cpuset=frozenset({4, 6}))
    kinds = [change_of_cpus(PLACEMENT, *pair) for pair in ((PROVEN, offline), (offline, PROVEN), (PROVEN, narrow))]
    assert [kind and kind[0] for kind in kinds] == ["cpus-offline", "cpus-online", "cpuset-changed"]
    assert change_of_cpus(PLACEMENT, PROVEN, PROVEN._replace(online=ALL - {0})) is None


@pytest.mark.parametrize(
    ("outcome", "drifted", "was_proven", "team_lives", "verdict"),
    [
        (HOLDS, False, False, True, HOLDS),
        (HOLDS, True, True, True, DIFFERS),
        (UNPROVEN, False, True, True, HOLDS),
        (UNPROVEN, False, False, True, UNPROVEN),
        (UNPROVEN, False, True, False, UNPROVEN),
        (HOLDS, False, True, False, UNPROVEN),
        (DIFFERS, False, True, True, DIFFERS),
    ],
)
def test_the_verdict_of_a_watched_rank(
    outcome: str, drifted: bool, was_proven: bool, team_lives: bool, verdict: str
) -> None:
    threads: dict[int, Mask] = {101: (5,)} if drifted else {}
    found = verdict_of_rank(Outcome(outcome, None), threads, was_proven=was_proven, team_lives=team_lives)
    assert found == verdict


def test_a_proven_team_may_compute_with_fewer_threads_for_a_while() -> None:
    serial = Outcome(DIFFERS, None, is_serial=True)
    assert verdict_of_rank(serial, {}, was_proven=True, team_lives=True) == HOLDS
    assert verdict_of_rank(serial, {}, was_proven=False, team_lives=True) == DIFFERS
