"""Advice from measured speeds: a verdict for each variant, and the one to use. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.measure.statistics import Interval, confidence_of_each, fewest_values
from ompaffinity.measure.variants import PLAN
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ompaffinity.measure.variants import Variant

FASTER, SLOWER, EQUAL, UNCLEAR = "faster", "slower", "no difference", "unclear"


class Advice(NamedTuple):
    """The variant to use (None: unknown), a sentence with the reason, and {other variant: its relative speed}."""

    variant: str | None
    text: str
    speeds: dict[str, Interval]


def verdict(speed: Interval, precision: float) -> str:
    """Return the verdict on the interval of a ratio of speeds.

    `EQUAL`: the interval lies within 1 plus or minus twice the precision. `FASTER` and `SLOWER`: it lies above or below
    1, and is not `EQUAL`. All others are `UNCLEAR`.
    """
    if speed.low is None or speed.high is None:
        return UNCLEAR
    if 1 - 2 * precision <= speed.low and speed.high <= 1 + 2 * precision:
        return EQUAL
    if speed.low > 1:
        return FASTER
    return SLOWER if speed.high < 1 else UNCLEAR


def advise(variants: Sequence[Variant], speed: Callable[[str, str], Interval], precision: float) -> Advice:
    """Return the advice: the plan, or the fastest variant if one is significantly faster than the plan.

    `speed` returns the speed of the first of two variants relative to the second one.
    """
    names = [variant.name for variant in variants]
    if speed(names[-1], names[0]).low is None:
        fewest = fewest_values(confidence_of_each(len(names) - 1))
        return Advice(None, f"too few rounds for a verdict; at least {fewest} are required: raise --budget", {})
    # The requested plan comes first, then its variants, then the variants without a plan.
    ordered = sorted(variants, key=lambda variant: (variant.name != "plan", variant.kind != PLAN))
    chosen = ordered[0]
    faster = [variant for variant in ordered if verdict(speed(variant.name, chosen.name), precision) == FASTER]
    if faster:
        chosen = max(faster, key=lambda variant: speed(variant.name, names[0]).median)
    speeds = {name: speed(name, chosen.name) for name in names if name != chosen.name}
    verdicts = {name: verdict(found, precision) for name, found in speeds.items()}
    flags = f" ({chosen.flags})" if chosen.flags else ""
    text = f"use {chosen.name}{flags}: no variant is significantly faster"
    slower = [name for name, word in verdicts.items() if word == SLOWER]
    if slower:
        worst = min(slower, key=lambda name: speeds[name].median)
        text += f"; the slowest, {worst}, runs at {_formatted(speeds[worst])} of its speed"
        if names[0] in slower and names[0] != worst:
            text += f", {names[0]} at {_formatted(speeds[names[0]])}"
    unclear = [name for name, word in verdicts.items() if word == UNCLEAR]
    if unclear:
        text += f"; no verdict for {', '.join(unclear)}: raise --budget"
    elif not slower:
        text += "; all others are equally fast, so the choice does not matter for this command on this machine"
    return Advice(chosen.name, text, speeds)


def _formatted(interval: Interval) -> str:
    return f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
