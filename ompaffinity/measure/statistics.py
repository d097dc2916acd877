"""Medians with confidence intervals that assume nothing of the distribution. Pure.

The interval of a median lies between two of the sorted values: the number of values below the true median is binomial,
whatever their distribution (Conover, Practical Nonparametric Statistics, 3.2; Hahn and Meeker, Statistical Intervals,
5.2).
"""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

import numpy as np

from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A median and the ends of its confidence interval, None where there are too few values."""

    median: float
    low: float | None = None
    high: float | None = None

    @property
    def width(self) -> float:
        """The distance between the ends, relative to the median; infinite where they are unknown."""
        if self.low is None or self.high is None:
            return float("inf")
        return (self.high - self.low) / self.median if self.median else 0.0


def confidence_of_each(comparisons: int) -> float:
    """Return the confidence that each of so many intervals needs, so that all hold at once in 95 % of all cases.

    This is Bonferroni's bound: however the intervals depend on each other, the probability that one of them fails is at
    most the sum of the probabilities.
    """
    return 1 - (1 - CONFIDENCE) / max(1, comparisons)


def fewest_values(confidence: float = CONFIDENCE) -> int:
    """Return the number of values whose minimum and maximum enclose the median with this confidence."""
    count = 1
    while _probability_outside(count, 0) > 1 - confidence:
        count += 1
    return count


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the median of at least one value, with its interval."""
    ordered = np.sort(np.asarray(values, dtype=float))
    count = len(ordered)
    middle = float(np.median(ordered))
    if count < fewest_values(confidence):
        return Interval(middle)
    left_out = 0
    while _probability_outside(count, left_out + 1) <= 1 - confidence:
        left_out += 1
    return Interval(middle, float(ordered[left_out]), float(ordered[count - 1 - left_out]))


def _probability_outside(count: int, rank: int) -> float:
    """Return the probability that the median is not between the values of this rank (from 0) from both ends."""
    below: float = sum(comb(count, fewer) for fewer in range(rank + 1)) / 2**count
    return 2 * below


def paired_ratio(values: Sequence[float], baseline: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the ratio of two variants that were measured in the same rounds, round by round."""
    ratios = np.asarray(values, dtype=float) / np.asarray(baseline, dtype=float)
    return median_interval(ratios.tolist(), confidence)
