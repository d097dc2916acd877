"""Which threads used CPU time in a window: the limits between idle, active and busy."""

from __future__ import annotations

import pytest

from ompaffinity.proof.activity import Activity, ThreadActivity, activity_between
from tests.proof.observations import process, window


@pytest.mark.parametrize(("share", "is_active"), [(0.01, True), (0.009, False)])
def test_a_thread_is_active_from_a_hundredth_of_the_window_on(share: float, is_active: bool) -> None:
    assert bool(window(((4,), share)).active) is is_active


@pytest.mark.parametrize(("share", "is_busy"), [(0.5, True), (0.49, False)])
def test_a_thread_is_busy_from_half_of_the_busiest_one_on(share: float, is_busy: bool) -> None:
    busy = window(((4,), 1.0), ((5,), share)).busy
    assert [thread.cpus for thread in busy] == [(4,), (5,)][: 1 + is_busy]


@pytest.mark.parametrize(("share", "is_busy"), [(0.1, True), (0.09, False)])
def test_no_thread_is_busy_below_a_tenth_of_the_window(share: float, is_busy: bool) -> None:
    assert bool(window(((4,), share)).busy) is is_busy


@pytest.mark.parametrize(("share", "is_saturated"), [(0.9, True), (0.89, False)])
def test_a_process_is_saturated_from_nine_tenths_of_the_window_on(share: float, is_saturated: bool) -> None:
    assert window(((4,), share), ((5,), 0.0)).saturated is is_saturated


def test_a_thread_that_waits_for_a_cpu_competes_like_one_that_runs() -> None:
    running, waiting = (
        ThreadActivity(100, "worker", (4,), run_seconds=0.4, delay_seconds=0.0),
        ThreadActivity(101, "worker", (4,), run_seconds=0.1, delay_seconds=0.3),
    )
    assert Activity(0.5, (running, waiting)).busy == (running, waiting)


def test_the_main_thread_comes_first_and_then_the_busiest() -> None:
    active = window(((4,), 0.2), ((5,), 0.6), ((6,), 0.8), ((7,), 0.0)).active
    assert [thread.cpus for thread in active] == [(4,), (6,), (5,)]


@pytest.mark.parametrize(
    ("read", "grown", "is_steady"),
    [
        (64 * 2**10, 16 * 2**20, True),
        (64 * 2**10 + 1, 0, False),
        (0, 16 * 2**20 + 1, False),
    ],
)
def test_a_process_that_reads_or_grows_much_is_not_steady(read: int, grown: int, is_steady: bool) -> None:
    before = process((4,))._replace(bytes_read=1000, peak_bytes=1000)
    after = before._replace(seconds=1.0, bytes_read=1000 + read, peak_bytes=1000 + grown)
    activity = activity_between(before, after)
    assert activity is not None
    assert activity.steady is is_steady


def test_two_observations_at_the_same_time_are_no_window() -> None:
    state = process((4,))
    assert activity_between(state, state) is None


@pytest.mark.parametrize(("before", "after"), [(None, 5), (5, None)])
def test_a_waiting_time_that_was_counted_once_only_is_unknown(before: int | None, after: int | None) -> None:
    first = process((4,))
    threads = [(first.threads[0]._replace(delay_ns=delay),) for delay in (before, after)]
    activity = activity_between(first._replace(threads=threads[0]), first._replace(threads=threads[1], seconds=1.0))
    assert activity is not None
    assert activity.threads[0].delay_seconds is None
