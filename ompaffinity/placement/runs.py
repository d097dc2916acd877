"""The best way to cut a row of places into runs of neighbours."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def best_runs(
    places: Sequence[int],
    ranks: int,
    least: int,
    most: int,
    levels: Iterable[tuple[Sequence[int], int]],
    *,
    gaps: bool,
) -> list[Sequence[int]] | None:
    """Return one run of `least` to `most` neighbours for each rank, None if they do not fit.

    `levels` are (group of each place, groups that a run may touch), the strongest first; a run that touches more groups
    straddles the level. In this order: fewest runs that straddle each level; fewest idle places; the larger run first.
    Only with `gaps` there are idle places.
    """
    total = len(places)
    scale = total + 1
    steps = [(_steps(places, label), enough) for label, enough in levels]
    # costs[start] is the least cost of all later runs on the places from `start` on: straddles, then idle places.
    costs = {start: total - start for start in range(scale)} if gaps else {total: 0}
    choices: list[dict[int, int]] = []
    for rank in reversed(range(ranks)):
        after, costs = costs, {}
        sizes: dict[int, int] = {}
        for start in range(total - (ranks - rank) * least, rank * least - 1, -1):
            # Size 0: this place stays idle.
            options = [(costs[start + 1] + 1, 0)] if gaps and start + 1 in costs else []
            for end in range(start + least, start + most + 1):
                if end in after:
                    straddles = _straddles(steps, start, end, scale)
                    options.append((straddles * scale + after[end], start - end))
            if options:
                costs[start], negative = min(options)
                sizes[start] = -negative
        choices.append(sizes)
    return _chosen_runs(places, reversed(choices)) if 0 in costs else None


def _straddles(steps: Sequence[tuple[Sequence[int], int]], start: int, end: int, scale: int) -> int:
    """Return which levels a run straddles, as one number: the digits of base `scale`, the strongest level first."""
    straddles = 0
    for numbers, enough in steps:
        straddles = straddles * scale + (numbers[end - 1] - numbers[start] >= enough)
    return straddles


def _chosen_runs(places: Sequence[int], choices: Iterable[dict[int, int]]) -> list[Sequence[int]]:
    runs: list[Sequence[int]] = []
    start = 0
    for sizes in choices:
        while sizes[start] == 0:
            start += 1
        runs.append(places[start : start + sizes[start]])
        start += sizes[start]
    return runs


def _steps(places: Sequence[int], label: Sequence[int]) -> list[int]:
    """Return a number for each place that grows by one wherever a new group begins."""
    groups = [label[place] for place in places]
    return list(accumulate(group != before for before, group in zip([None, *groups], groups)))
