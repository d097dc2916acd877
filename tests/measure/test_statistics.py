from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.measure.statistics import (
    Interval,
    confidence_of_each,
    fewest_values,
    median_interval,
    paired_ratio,
)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    # Conover, Practical Nonparametric Statistics, and every table of the sign test: ranks from 1.
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (12, 3, 10), (15, 4, 12), (20, 6, 15), (25, 8, 18), (50, 18, 33)],
)
def test_the_ranks_are_those_of_the_tables(count: int, low: int, high: int) -> None:
    interval = median_interval([*range(1, count + 1)])
    assert (interval.low, interval.high) == (low, high)


def test_too_few_values_have_no_interval() -> None:
    assert median_interval([3.0]) == Interval(3.0)
    assert fewest_values() == 6
    assert median_interval([1.0] * 5) == Interval(1.0)
    assert median_interval([1.0]).width == float("inf")


def test_an_interval_is_as_wide_as_its_ends_are_apart_relative_to_the_median() -> None:
    assert Interval(2.0, 1.0, 4.0).width == 1.5
    assert Interval(0.0, 0.0, 0.0).width == 0.0


def test_a_confidence_that_is_met_exactly_is_enough() -> None:
    # Both of two values are on one side of the median with probability 1/2; at most one of five is with 3/8.
    assert fewest_values(0.5) == 2
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0], 0.625) == Interval(3.0, 2.0, 4.0)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0], 0.626) == Interval(3.0, 1.0, 5.0)


def test_several_intervals_hold_at_once() -> None:
    assert confidence_of_each(0) == pytest.approx(0.95)
    assert confidence_of_each(1) == pytest.approx(0.95)
    assert confidence_of_each(10) == pytest.approx(0.995)
    assert fewest_values(confidence_of_each(10)) == 9
    draw = random.Random(2)  # noqa: S311
    wrong = 0
    for _ in range(1000):
        found = [median_interval([draw.gauss(1, 0.1) for _ in range(20)], confidence_of_each(10)) for _ in range(10)]
        wrong += any(not (one.low or 0) <= 1 <= (one.high or 0) for one in found)
    assert wrong <= 0.06 * 1000


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_the_median_is_inside(values: list[float]) -> None:
    interval = median_interval(values)
    ordered = sorted(values)
    assert ordered[0] <= interval.median <= ordered[-1]
    if interval.low is not None and interval.high is not None:
        assert interval.low <= interval.median <= interval.high


def test_the_interval_holds_what_it_promises() -> None:
    """Of 2000 samples of a skewed distribution at least 95 % of the intervals hold the true median."""
    draw = random.Random(1)  # noqa: S311
    for count in (6, 10, 17):
        hits = 0
        for _ in range(2000):
            interval = median_interval([draw.expovariate(1) for _ in range(count)])
            assert interval.low is not None
            assert interval.high is not None
            hits += interval.low <= 0.6931 <= interval.high
        assert hits >= 0.94 * 2000


def test_a_slow_round_hits_both_and_leaves_the_ratio() -> None:
    first = [2.0, 2.0, 20.0, 2.0, 2.0, 2.0]
    second = [1.0, 1.0, 10.0, 1.0, 1.0, 1.0]
    assert paired_ratio(first, second) == Interval(2.0, 2.0, 2.0)
