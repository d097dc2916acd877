"""What windows prove: no team without evidence, and no difference that one window alone shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.placement.model import RankPlacement
from ompaffinity.proof.activity import Activity, ThreadActivity, activity_between
from ompaffinity.proof.evidence import evidence_of
from ompaffinity.proof.timeline import Timeline
from ompaffinity.proof.verdict import DIFFERS, HOLDS, UNPROVEN
from tests.proof.observations import ALONE, FLOATING, PLACEMENT, Mask, process, timeline, window

MAIN, SECOND, ALL = (4, 6), (5,), (4, 5, 6)
TEAM = window((MAIN, 1.0), (SECOND, 1.0), (ALL, 0.0))


def verdict(placement: RankPlacement, *windows: Activity, has_openmp: bool = True, **engine: bool) -> str:
    return timeline(placement, *windows, has_openmp=has_openmp, **engine).outcome().verdict


def test_a_pinned_team_at_work_holds_after_two_windows() -> None:
    assert verdict(PLACEMENT, TEAM) == UNPROVEN
    assert verdict(PLACEMENT, TEAM, TEAM) == HOLDS
    idle = window((MAIN, 0.0), (SECOND, 0.0))
    assert verdict(PLACEMENT, TEAM, idle, idle, TEAM) == HOLDS


def test_threads_that_sleep_prove_nothing() -> None:
    asleep = window((MAIN, 1.0), (SECOND, 0.0))
    outcome = timeline(PLACEMENT, *[asleep] * 4).outcome()
    assert outcome.verdict == UNPROVEN
    assert outcome.window is not None
    assert [thread is not None for thread in outcome.window.evidence.threads] == [True, False]


def test_a_team_that_waits_passively_holds() -> None:
    assert verdict(PLACEMENT, *[window((MAIN, 1.0), (SECOND, 0.05))] * 2) == HOLDS


@pytest.mark.parametrize("placement", [FLOATING, ALONE])
def test_a_team_that_only_its_number_proves_takes_two_seconds(placement: RankPlacement) -> None:
    mask = placement.places[0]
    busy = window(*[(mask, 1.0)] * len(placement.cpus))
    assert verdict(placement, *[busy] * 3) == UNPROVEN
    assert verdict(placement, *[busy] * 4) == HOLDS


def test_windows_of_less_than_two_seconds_prove_no_number_of_threads() -> None:
    busy = window((ALONE.affinity, 1.0))
    assert verdict(ALONE, busy._replace(seconds=1.9)) == HOLDS
    assert verdict(ALONE, busy._replace(seconds=1.89)) == UNPROVEN


def test_a_larger_team_after_a_serial_start_is_not_proven_by_the_start() -> None:
    beside_helper = ALONE._replace(helper_cpus=(5,), places=((4, 5),), affinity=(4, 5))
    serial, both = window(((4, 5), 1.0)), window(((4, 5), 1.0), ((4, 5), 0.7))
    assert verdict(beside_helper, *[serial] * 6) == HOLDS
    assert verdict(beside_helper, *[serial] * 6, both) == HOLDS
    assert verdict(beside_helper, *[serial] * 6, *[both] * 4) == UNPROVEN


def test_an_import_does_not_prove_a_team_of_one() -> None:
    importing = window((ALONE.affinity, 1.0), steady=False)
    assert verdict(ALONE, *[importing] * 8) == UNPROVEN


@pytest.mark.parametrize("placement", [PLACEMENT, FLOATING, ALONE])
def test_a_team_that_is_too_large_differs(placement: RankPlacement) -> None:
    threads = [(placement.places[at % len(placement.places)], 0.25) for at in range(8)]
    outcome = timeline(placement, *[window(*threads, delay=0.7)] * 2).outcome()
    assert outcome.verdict == DIFFERS
    assert any("8 busy threads" in difference.message for difference in outcome.differences)


def test_a_caller_that_waits_for_its_pool_is_no_thread_of_it() -> None:
    both = window((ALONE.affinity, 0.5), (ALONE.affinity, 0.5))
    assert verdict(ALONE, *[both] * 4, has_openmp=False, own_threads=True, with_caller=True) == HOLDS
    assert verdict(ALONE, *[both] * 4, has_openmp=False, own_threads=True) == DIFFERS
    three = window(*[(ALONE.affinity, 0.5)] * 3)
    assert verdict(ALONE, *[three] * 4, has_openmp=False, own_threads=True, with_caller=True) == DIFFERS


def test_a_program_that_computes_with_fewer_threads_differs_after_three_seconds() -> None:
    serial = window((ALL, 1.0), (ALL, 0.0))
    assert verdict(FLOATING, *[serial] * 5) == UNPROVEN
    outcome = timeline(FLOATING, *[serial] * 6).outcome()
    assert outcome.verdict == DIFFERS
    assert outcome.differences[0].message == "1 thread used CPU time in 3 seconds of computing, the plan has 2"
    last = window((ALL, 0.95), (ALL, 0.0))
    shown = timeline(FLOATING, *[serial] * 5, last).outcome().window
    assert shown is not None
    assert shown.activity == last
    loading = window((ALL, 1.0), (ALL, 0.0), steady=False)
    assert verdict(FLOATING, *[loading] * 10) == UNPROVEN


def test_one_busy_helper_thread_on_the_helper_cpus_is_no_difference() -> None:
    helper = window((MAIN, 1.0), (SECOND, 1.0), (ALL, 1.0))
    outcome = timeline(PLACEMENT, helper, helper).outcome()
    assert outcome.verdict == HOLDS
    assert outcome.notes == ("1 other thread of the process used CPU time beside the team",)
    # But a team of three would look the same where the threads float.
    assert verdict(FLOATING, *[window((ALL, 1.0), (ALL, 1.0), (ALL, 1.0))] * 8) == UNPROVEN


def test_a_difference_in_one_window_does_not_count() -> None:
    outside = window(((4, 7), 1.0), (SECOND, 1.0))
    assert verdict(PLACEMENT, outside) == UNPROVEN
    assert verdict(PLACEMENT, outside, TEAM, TEAM) == HOLDS
    assert verdict(PLACEMENT, TEAM, TEAM, outside, outside) == DIFFERS
    assert verdict(PLACEMENT, outside, outside, TEAM, TEAM) == HOLDS


def test_a_thread_that_was_moved_differs_at_its_place() -> None:
    moved = window((MAIN, 1.0), ((4,), 1.0))
    outcome = timeline(PLACEMENT, moved, moved).outcome()
    assert [(found.subject, found.message) for found in outcome.differences] == [
        ("thread 1", "may run on CPU 4, the plan requires 5")
    ]


def test_a_team_that_floats_instead_of_being_pinned_differs() -> None:
    outcome = timeline(PLACEMENT, *[window(*[(ALL, 1.0)] * 3)] * 2).outcome()
    assert outcome.verdict == DIFFERS


def test_threads_of_another_engine_are_compared_with_the_mask() -> None:
    own = window((MAIN, 1.0), (MAIN, 1.0))
    found = timeline(PLACEMENT, *[own] * 4, own_threads=True).outcome()
    assert (found.verdict, found.window.evidence.level if found.window else "") == (HOLDS, "mask")
    crowded = window(((4,), 1.0), ((4,), 1.0))
    assert verdict(PLACEMENT, *[crowded] * 2, has_openmp=False) == DIFFERS


def test_an_unbound_rank_holds_when_it_computes() -> None:
    unbound = RankPlacement(0, 0, bound=False)
    assert verdict(unbound, *[window(((0, 1), 1.0))] * 4) == HOLDS
    assert verdict(unbound, *[window(((0, 1), 0.0))] * 4) == UNPROVEN


MASKS = st.sampled_from([(4,), (5,), (4, 6), (4, 5, 6), (7,), (4, 5, 6, 7), (6,)])
SHARES = st.sampled_from([0.0, 0.005, 0.05, 0.4, 0.6, 1.0])
WINDOWS = st.builds(
    lambda threads, delay, steady: window(*threads, delay=delay, steady=steady),
    st.lists(st.tuples(MASKS, SHARES), min_size=1, max_size=5),
    st.sampled_from([None, 0.0, 0.3]),
    st.booleans(),
)
PLACEMENTS = st.sampled_from([PLACEMENT, FLOATING, ALONE])


def is_outside(thread: ThreadActivity, placement: RankPlacement) -> bool:
    return bool(set(thread.cpus) - set(placement.affinity))


@given(PLACEMENTS, st.lists(WINDOWS, max_size=6), st.booleans(), st.booleans())
def test_holds_only_with_as_many_active_threads_as_planned(
    placement: RankPlacement, windows: list[Activity], has_openmp: bool, own: bool
) -> None:
    found = timeline(placement, *windows, has_openmp=has_openmp, own_threads=own).outcome()
    if found.verdict == HOLDS:
        assert found.window is not None
        assert len(found.window.activity.active) >= len(placement.cpus)
        assert all(thread is not None for thread in found.window.evidence.threads)
        assert len(windows) >= 2


@given(PLACEMENTS, WINDOWS, st.booleans(), st.booleans())
def test_differs_whenever_a_thread_is_outside_of_the_mask(
    placement: RankPlacement, activity: Activity, has_openmp: bool, own: bool
) -> None:
    found = timeline(placement, activity, activity, has_openmp=has_openmp, own_threads=own).outcome()
    if any(is_outside(thread, placement) for thread in activity.threads):
        assert found.verdict == DIFFERS


@given(WINDOWS)
def test_differs_whenever_a_busy_thread_is_bound_to_a_cpu_of_another_place(activity: Activity) -> None:
    found = evidence_of(PLACEMENT, activity, has_openmp=True, own_threads=False)
    wrong = [thread for thread in activity.busy if thread.cpus == (4,)]
    assert not wrong or found.differences


def test_thread_0_is_the_first_that_floats_where_none_is_at_its_place() -> None:
    activity = window((ALL, 1.0), (SECOND, 1.0), (ALL, 1.0))
    found = evidence_of(PLACEMENT, activity, has_openmp=True, own_threads=False)
    assert [thread.thread_id for thread in found.threads if thread is not None] == [100, 101]
    assert found.differences[0].subject == "thread 0"


@given(PLACEMENTS, st.lists(WINDOWS, max_size=6))
def test_the_same_windows_give_the_same_verdict(placement: RankPlacement, windows: list[Activity]) -> None:
    assert timeline(placement, *windows).outcome() == timeline(placement, *windows).outcome()


def observed(start: int, seconds: float, run_ns: int, delay_ns: int | None, mask: Mask = (4,)) -> object:
    state = process(mask)
    thread = state.threads[0]._replace(start_time=start, run_ns=run_ns, delay_ns=delay_ns)
    return state._replace(seconds=seconds, threads=(thread,))


def test_activity_is_the_difference_of_two_observations() -> None:
    first, second = observed(7, 1.0, 10**9, 0), observed(7, 3.0, 2 * 10**9, 5 * 10**8)
    activity = activity_between(first, second)  # type: ignore[arg-type]
    assert activity is not None
    assert (activity.seconds, activity.threads[0].run_seconds, activity.threads[0].delay_seconds) == (2.0, 1.0, 0.5)


def test_a_thread_with_a_number_that_was_used_before_is_a_new_one() -> None:
    activity = activity_between(observed(7, 1.0, 10**9, 0), observed(8, 3.0, 10**8, 0))  # type: ignore[arg-type]
    assert activity is not None
    assert activity.threads[0].run_seconds == pytest.approx(0.1)


def test_the_time_that_a_thread_waits_is_unknown_where_the_kernel_does_not_count_it() -> None:
    activity = activity_between(observed(7, 1.0, 0, None), observed(7, 2.0, 10**9, None))  # type: ignore[arg-type]
    assert activity is not None
    assert activity.threads[0].delay_seconds is None


def test_another_process_with_the_same_number_has_no_activity() -> None:
    first, second = process((4,)), process((4,))._replace(start_time=5, seconds=1.0)
    assert activity_between(first, second) is None


def test_reports_the_most_busy_threads_of_any_window() -> None:
    assert timeline(PLACEMENT, window((MAIN, 1.0)), TEAM, window((MAIN, 1.0))).busy_threads == 2


def test_threads_are_confirmed_busy_by_two_windows_in_a_row() -> None:
    alone = window((MAIN, 1.0), (SECOND, 0.0))
    assert timeline(PLACEMENT, TEAM).busy_in_confirming_windows == frozenset()
    assert timeline(PLACEMENT, alone, TEAM, TEAM).busy_in_confirming_windows == {100, 101}
    assert timeline(PLACEMENT, TEAM, TEAM, alone).busy_in_confirming_windows == {100}


@pytest.mark.parametrize(
    ("activity", "note"),
    [
        (window((MAIN, 0.0), (SECOND, 0.0)), "no thread was busy while it was observed"),
        (window((MAIN, 1.0), (SECOND, 0.0)), "1 busy thread seen, the plan has 2"),
        (TEAM, "its team was not seen at work for long enough"),
    ],
)
def test_reports_why_a_team_is_unproven(activity: Activity, note: str) -> None:
    outcome = timeline(PLACEMENT, activity).outcome()
    assert (outcome.verdict, outcome.notes) == (UNPROVEN, (note,))


def test_a_timeline_without_windows_is_unproven() -> None:
    assert Timeline(PLACEMENT).outcome().verdict == UNPROVEN
