"""Rounds of runs: every variant once in each, in shuffled order, until the ratios are known well enough."""

from __future__ import annotations

import random
import time

from ompaffinity.errors import RequestError
from ompaffinity.measure.runs import CommandFailedError, TooSlowError, measure_run
from ompaffinity.measure.statistics import FEWEST, Interval, median_interval, paired_ratio
from ompaffinity.measure.variants import PLAN
from ompaffinity.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from ompaffinity.measure.runs import Run
    from ompaffinity.measure.variants import Variant, VariantManager

QUIET_CPUS = 0.15
"""With more than so many CPUs busy with something else a run is called disturbed."""
MOST_OF_BUDGET = 0.25
"""A variant of which one run takes more is left out."""
FASTER, SLOWER, EQUAL, UNCLEAR = "faster", "slower", "no difference", "unclear"


class Settings(NamedTuple):
    """What is measured, and for how long: `lower` says that a smaller figure is better; `precision` is relative."""

    command: tuple[str, ...]
    metric: re.Pattern[str] | None = None
    lower: bool = True
    budget_seconds: float = 300
    precision: float = 0.02


class Result(NamedTuple):
    """One variant: its runs, the median figure, and its speed relative to the baseline (above 1: faster)."""

    variant: Variant
    runs: tuple[Run, ...]
    figure: Interval
    speed: Interval
    verdict: str


class Advice(NamedTuple):
    """Which variant to take, in words, and the speed of every other one relative to it."""

    variant: str | None
    text: str
    speeds: dict[str, Interval] = {}


class Comparison(NamedTuple):
    """What came of it. `counted` are the rounds that count: the quiet ones, if there are enough of them."""

    settings: Settings
    results: tuple[Result, ...]
    rounds: int
    counted: tuple[int, ...]
    quiet: bool
    narrow: bool
    left_out: dict[str, str]
    advice: Advice

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.compare/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.compare/1",
            "command": list(self.settings.command),
            "metric": None if self.settings.metric is None else self.settings.metric.pattern,
            "better": "lower" if self.settings.lower else "higher",
            "rounds": self.rounds,
            "counted_rounds": list(self.counted),
            "quiet": self.quiet,
            "narrow": self.narrow,
            "baseline": self.results[0].variant.name,
            "variants": [
                {
                    "name": result.variant.name,
                    "summary": result.variant.summary,
                    "options": result.variant.flags,
                    "seconds": [run.seconds for run in result.runs],
                    "figures": [run.figure for run in result.runs],
                    "other_cpus": [run.others for run in result.runs],
                    "figure": result.figure._asdict(),
                    "speed": result.speed._asdict(),
                    "verdict": result.verdict,
                }
                for result in self.results
            ],
            "left_out": self.left_out,
            "advice": {
                "variant": self.advice.variant,
                "text": self.advice.text,
                "speeds": {name: speed._asdict() for name, speed in self.advice.speeds.items()},
            },
        }


def compare_variants(
    managers: Mapping[str, tuple[Variant, VariantManager]],
    settings: Settings,
    progress: Callable[[str, float], object] = lambda _text, _done: None,
) -> Comparison:
    """Run the command under every variant until the ratios to the first one are narrow, or the budget is spent.

    `progress` is called before each run with what is done and how much of the budget is spent, 0 to 1.

    Raises:
        CommandFailedError: the command fails under a variant.
        RequestError: not one round fits into the budget.
    """
    start = time.monotonic()
    left_out: dict[str, str] = {}
    alive = dict(managers)
    baseline = next(iter(alive))
    lengths: dict[str, float] = {}

    def run(name: str, what: str) -> Run | None:
        spent = time.monotonic() - start
        progress(f"{what}: {name}", min(1.0, spent / settings.budget_seconds))
        most = settings.budget_seconds * MOST_OF_BUDGET
        try:
            found = measure_run(alive[name][1], settings.command, settings.metric, most)
        except TooSlowError:
            if name == baseline:
                raise RequestError(
                    f"one run under {name} takes longer than {most:.0f} seconds; raise --budget, or give a shorter"
                    " command"
                ) from None
            left_out[name] = f"a run takes longer than {most:.0f} seconds"
            del alive[name]
            return None
        except CommandFailedError as error:
            raise CommandFailedError(f"under {name}: {error}") from None
        lengths[name] = max(found.seconds, lengths.get(name, 0.0))
        return found

    for name in [*alive]:
        run(name, "warm-up")
    rounds: list[dict[str, Run]] = []
    while True:
        expected = sum(lengths[name] for name in alive)
        if time.monotonic() - start + expected > settings.budget_seconds:
            break
        order = [*alive]
        # Which one comes first must not count; the order is the same in every session.
        random.Random(len(rounds)).shuffle(order)  # noqa: S311
        found = {}
        for name in order:
            one = run(name, f"round {len(rounds) + 1}")
            if one is not None:
                found[name] = one
        rounds.append(found)
        if _is_narrow(rounds, [*alive], baseline, settings):
            break
    if not rounds:
        raise RequestError(
            f"one round of {len(alive)} variants takes {expected:.0f} seconds, and the budget is"
            f" {settings.budget_seconds:.0f}; raise --budget, or name fewer variants (--variant)"
        )
    return conclude([managers[name][0] for name in alive], rounds, settings, left_out)


def conclude(
    variants: Sequence[Variant], rounds: Sequence[Mapping[str, Run]], settings: Settings, left_out: dict[str, str]
) -> Comparison:
    """Return what the rounds say; the first variant is the baseline."""
    counted, quiet = counted_rounds(rounds)
    names = [variant.name for variant in variants]
    speeds = {name: _speeds(name, names[0], rounds, counted, settings) for name in names}
    results = tuple(
        Result(
            variant,
            tuple(found[variant.name] for found in rounds),
            median_interval([rounds[turn][variant.name].figure for turn in counted]),
            speeds[variant.name],
            EQUAL if variant.name == names[0] else verdict(speeds[variant.name], settings.precision),
        )
        for variant in variants
    )
    narrow = _is_narrow(rounds, names, names[0], settings)
    advice = _advice(variants, rounds, counted, settings)
    return Comparison(settings, results, len(rounds), tuple(counted), quiet, narrow, left_out, advice)


def counted_rounds(rounds: Sequence[Mapping[str, Run]]) -> tuple[list[int], bool]:
    """Return the rounds that count, and whether they are quiet: those in which nobody else was busy, or else all."""
    quiet = [turn for turn, found in enumerate(rounds) if all(run.others <= QUIET_CPUS for run in found.values())]
    return (quiet, True) if len(quiet) >= FEWEST else ([*range(len(rounds))], len(quiet) == len(rounds))


def verdict(speed: Interval, precision: float) -> str:
    """Return what an interval of a ratio says: a difference only where 1 is outside of it."""
    if speed.low is None or speed.high is None:
        return UNCLEAR
    if speed.low > 1:
        return FASTER
    if speed.high < 1:
        return SLOWER
    return EQUAL if speed.high - speed.low <= 5 * precision else UNCLEAR


def _speeds(
    name: str, other: str, rounds: Sequence[Mapping[str, Run]], counted: Sequence[int], settings: Settings
) -> Interval:
    """Return how fast a variant is relative to another one, round by round."""
    mine = [rounds[turn][name].figure for turn in counted]
    theirs = [rounds[turn][other].figure for turn in counted]
    if not all(figure > 0 for figure in (*mine, *theirs)):
        raise CommandFailedError("the figures must be above 0, for they are divided by each other")
    return paired_ratio(theirs, mine) if settings.lower else paired_ratio(mine, theirs)


def _is_narrow(rounds: Sequence[Mapping[str, Run]], names: Sequence[str], baseline: str, settings: Settings) -> bool:
    counted, _ = counted_rounds(rounds)
    return all(
        _speeds(name, baseline, rounds, counted, settings).width <= 2 * settings.precision
        for name in names
        if name != baseline
    )


def _advice(
    variants: Sequence[Variant], rounds: Sequence[Mapping[str, Run]], counted: Sequence[int], settings: Settings
) -> Advice:
    """Advise the plan unless something else is faster beyond doubt; then that."""
    names = [variant.name for variant in variants]
    if len(counted) < FEWEST:
        text = f"{len(counted)} rounds are too few to tell; at least {FEWEST} are needed: raise --budget"
        return Advice(None, text)
    best = max(names, key=lambda name: _speeds(name, names[0], rounds, counted, settings).median)
    chosen = best
    for variant in sorted(variants, key=lambda variant: (variant.name != "plan", variant.kind != PLAN)):
        slower = _speeds(variant.name, best, rounds, counted, settings)
        if slower.high is not None and slower.high >= 1 and slower.median >= 1 - settings.precision:
            chosen = variant.name
            break
    speeds = {name: _speeds(name, chosen, rounds, counted, settings) for name in names if name != chosen}
    variant = next(variant for variant in variants if variant.name == chosen)
    how = f" ({variant.flags})" if variant.flags else ""
    text = f"take {chosen}{how}: no variant is faster beyond doubt"
    worst = min(speeds, key=lambda name: speeds[name].median, default=None)
    if worst is not None and verdict(speeds[worst], settings.precision) == SLOWER:
        text += f"; the worst choice here, {worst}, runs at {_words(speeds[worst])} of its speed"
        if names[0] not in (worst, chosen) and verdict(speeds[names[0]], settings.precision) == SLOWER:
            text += f", and {names[0]} at {_words(speeds[names[0]])}"
    elif worst is not None:
        text += "; none is slower beyond doubt either, so the choice does not matter for this command here"
    return Advice(chosen, text, speeds)


def _words(interval: Interval) -> str:
    return f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
