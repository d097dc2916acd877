"""What to do about measured speeds: a verdict for each, and one plan to take. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.measure.statistics import Interval, confidence_of_each, fewest_values
from ompaffinity.measure.variants import PLAN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ompaffinity.measure.variants import Variant

FASTER, SLOWER, EQUAL, UNCLEAR = "faster", "slower", "no difference", "unclear"


class Advice(NamedTuple):
    """Which variant to take, in words, and the speed of every other one relative to it."""

    variant: str | None
    text: str
    speeds: dict[str, Interval]


def verdict(speed: Interval, precision: float) -> str:
    """Return what an interval of a ratio says.

    `FASTER` and `SLOWER`: 1 is outside of it. `EQUAL`: it is wholly within twice the precision of 1, whether 1 is
    in it or not. The rest is `UNCLEAR`.
    """
    if speed.low is None or speed.high is None:
        return UNCLEAR
    if 1 - 2 * precision <= speed.low and speed.high <= 1 + 2 * precision:
        return EQUAL
    if speed.low > 1:
        return FASTER
    return SLOWER if speed.high < 1 else UNCLEAR


def advise(variants: Sequence[Variant], speed: Callable[[str, str], Interval], precision: float) -> Advice:
    """Advise the plan unless something else is faster beyond doubt; then the fastest.

    `speed` returns how fast the first of two variants is relative to the second one.
    """
    names = [variant.name for variant in variants]
    if speed(names[-1], names[0]).low is None:
        fewest = fewest_values(confidence_of_each(len(names) - 1))
        return Advice(None, f"these are too few rounds to tell; at least {fewest} are needed: raise --budget", {})
    # The plan as asked for first, then ours, then what users do without us.
    ordered = sorted(variants, key=lambda variant: (variant.name != "plan", variant.kind != PLAN))
    chosen = ordered[0]
    faster = [variant for variant in ordered if verdict(speed(variant.name, chosen.name), precision) == FASTER]
    if faster:
        chosen = max(faster, key=lambda variant: speed(variant.name, names[0]).median)
    speeds = {name: speed(name, chosen.name) for name in names if name != chosen.name}
    verdicts = {name: verdict(found, precision) for name, found in speeds.items()}
    how = f" ({chosen.flags})" if chosen.flags else ""
    text = f"take {chosen.name}{how}: no variant is faster beyond doubt"
    slower = [name for name, word in verdicts.items() if word == SLOWER]
    if slower:
        worst = min(slower, key=lambda name: speeds[name].median)
        text += f"; the worst choice that is certain, {worst}, runs at {_words(speeds[worst])} of its speed"
        if names[0] in slower and names[0] != worst:
            text += f", and {names[0]} at {_words(speeds[names[0]])}"
    unclear = [name for name, word in verdicts.items() if word == UNCLEAR]
    if unclear:
        text += f"; what {', '.join(unclear)} would cost could not be told: raise --budget"
    elif not slower:
        text += "; the others are as fast, so the choice does not matter for this command here"
    return Advice(chosen.name, text, speeds)


def _words(interval: Interval) -> str:
    return f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
