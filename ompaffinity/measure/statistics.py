"""Medians with confidence intervals that assume nothing of the distribution. Pure.

The interval of a median is between two of the sorted values: how many are below the true median is binomial, whatever
the values are like (Conover, Practical Nonparametric Statistics, 3.2; Hahn and Meeker, Statistical Intervals, 5.2).
"""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A median, and between which values it is with the confidence asked for; None where there are too few values."""

    median: float
    low: float | None = None
    high: float | None = None

    @property
    def width(self) -> float:
        """How far the ends are apart, relative to the median; endless where they are not known."""
        if self.low is None or self.high is None:
            return float("inf")
        return (self.high - self.low) / self.median if self.median else 0.0


def confidence_of_each(comparisons: int) -> float:
    """Return how sure each of so many intervals must be for all of them to hold at once in 95 % of all cases.

    That is Bonferroni's bound: whatever they have to do with each other, they fail together at most as often as the
    sum.
    """
    return 1 - (1 - CONFIDENCE) / max(1, comparisons)


def fewest_values(confidence: float = CONFIDENCE) -> int:
    """Return how many values it takes for the least and the largest to enclose the median with this confidence."""
    count = 1
    while _outside(count, 0) > 1 - confidence:
        count += 1
    return count


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the median of at least one value, with its interval."""
    ordered = sorted(values)
    count = len(ordered)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    if count < fewest_values(confidence):
        return Interval(middle)
    left_out = 0
    # Of so many values on each side none may be missing for more than the rest of all cases.
    while _outside(count, left_out + 1) <= 1 - confidence:
        left_out += 1
    return Interval(middle, ordered[left_out], ordered[count - 1 - left_out])


def _outside(count: int, rank: int) -> float:
    """Return how often the median is not between the values of this rank (from 0) from both ends."""
    below: float = sum(comb(count, fewer) for fewer in range(rank + 1)) / 2**count
    return 2 * below


def paired_ratio(values: Sequence[float], baseline: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the ratio of two variants that were measured in the same rounds, round by round."""
    return median_interval([value / other for value, other in zip(values, baseline)], confidence)
