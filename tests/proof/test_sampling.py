"""When the observation of process trees may end."""

from __future__ import annotations

from ompaffinity.proof.activity import Activity
from ompaffinity.proof.sampling import TreeObserver
from tests.proof.observations import PLACEMENT, SECONDS, process, timeline, window

MAIN, SECOND = PLACEMENT.places
TEAM, OUTSIDE = window((MAIN, 1.0), (SECOND, 1.0)), window((MAIN, 1.0), ((7,), 1.0))


def observer_of(*activities: Activity) -> TreeObserver:
    """Return an observer that has seen these windows of a process."""
    observer = TreeObserver([100])
    observer.states = {100: process(MAIN, SECOND)}
    observer.timelines = {100: timeline(PLACEMENT, *activities)}
    return observer


def test_a_difference_counts_from_its_first_window_on() -> None:
    observer = observer_of(TEAM, OUTSIDE, OUTSIDE)
    assert observer.differs_for(2 * SECONDS)
    assert not observer.differs_for(2 * SECONDS + 0.01)


def test_a_window_without_difference_ends_the_time_of_a_difference() -> None:
    assert not observer_of(OUTSIDE, OUTSIDE, TEAM).differs_for(0.01)


def test_ranks_are_proven_when_each_team_was_seen_at_work() -> None:
    assert observer_of(TEAM, TEAM).proven
    assert not observer_of(TEAM).proven
