"""Rounds of runs: every variant once in each, in shuffled order, until the ratios are known well enough."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import InterruptedBySignalError, RequestError
from ompaffinity.launch.guard import RankGuard
from ompaffinity.launch.signals import SignalReceiver
from ompaffinity.measure.advice import EQUAL, Advice, advise, verdict
from ompaffinity.measure.runs import CommandFailedError, TooSlowError, measure_run
from ompaffinity.measure.statistics import (
    Interval,
    confidence_of_each,
    fewest_values,
    median_interval,
    paired_ratio,
)
from ompaffinity.proof.observe import require_proc
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.measure.runs import Run
    from ompaffinity.measure.variants import Variant

    Rounds = Sequence[Mapping[str, Run]]

QUIET_CPUS = 0.15
"""With more than so many CPUs busy with something else a run is called disturbed."""
SHORTEST_SECONDS = 0.2
"""The kernel counts CPU time in hundredths of a second: it does not show other processes in shorter runs."""
MAX_SHARE_OF_BUDGET = 0.25
"""A variant of which one run takes more is left out."""


class Settings(NamedTuple):
    """What is measured, and for how long: `lower`: a smaller figure is better; `precision` is relative."""

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


class Comparison(NamedTuple):
    """What came of it. `counted` are the rounds that count: the quiet ones, if there are enough of them.

    `interrupted_by` is the signal that ended the measuring early, None if it is complete.
    """

    settings: Settings
    results: tuple[Result, ...]
    rounds: int
    counted: tuple[int, ...]
    quiet: bool
    narrow: bool
    left_out: dict[str, str]
    advice: Advice
    interrupted_by: int | None = None

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.compare/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.compare/1",
            "command": list(self.settings.command),
            "metric": None if self.settings.metric is None else self.settings.metric.pattern,
            "better": "lower" if self.settings.lower else "higher",
            "complete": self.interrupted_by is None,
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


class _Session:
    """The rounds so far, and who is left."""

    def __init__(
        self,
        managers: Mapping[str, tuple[Variant, OMPProcessManager]],
        settings: Settings,
        progress: Callable[[str, float], object],
        signals: SignalReceiver,
        guard: RankGuard,
    ) -> None:
        self.settings = settings
        self.left_out: dict[str, str] = {}
        self.rounds: list[dict[str, Run]] = []
        self._managers, self._progress = managers, progress
        self._signals, self._guard = signals, guard
        self._start = time.monotonic()
        self.alive = [*managers]
        self._baseline = self.alive[0]
        self._lengths: dict[str, float] = {}

    @property
    def spent(self) -> float:
        return time.monotonic() - self._start

    def _run(self, name: str, what: str) -> Run | None:
        """Return a run of a variant; None where it is left out from now on."""
        self._progress(f"{what}: {name}", min(1.0, self.spent / self.settings.budget_seconds))
        most = self.settings.budget_seconds * MAX_SHARE_OF_BUDGET
        try:
            manager = self._managers[name][1]
            found = measure_run(manager, self.settings.command, self.settings.metric, most, self._signals, self._guard)
        except (TooSlowError, CommandFailedError) as error:
            slow = isinstance(error, TooSlowError)
            reason = f"a run takes longer than {most:.0f} seconds" if slow else f"a run failed: {error}"
            if not self.rounds and not slow:
                raise CommandFailedError(f"under {name}: {error}") from None
            if name == self._baseline and not self.rounds:
                raise RequestError(
                    f"one run under {name} takes longer than {most:.0f} seconds; raise --budget, or give a shorter"
                    " command"
                ) from None
            self.left_out[name] = reason
            self.alive.remove(name)
            return None
        self._lengths[name] = max(found.seconds, self._lengths.get(name, 0.0))
        return found

    def warm_up(self) -> None:
        """Run each variant once; as soon as no complete round is possible, raise an error."""
        for name in [*self.alive]:
            self._run(name, "warm-up")
            seconds = sum(self._lengths.values())
            if seconds > self.settings.budget_seconds / 2:
                raise RequestError(
                    f"a run of {len(self._lengths)} of {len(self._managers)} variants each takes {seconds:.0f} seconds,"
                    f" which is too much for a budget of {self.settings.budget_seconds:.0f}; raise --budget, or name"
                    " fewer variants (--variant)"
                )

    def add_round(self) -> bool:
        """Run each variant once more, in shuffled order; False where the budget does not suffice."""
        expected = sum(self._lengths[name] for name in self.alive)
        if self.spent + expected > self.settings.budget_seconds:
            return False
        order = [*self.alive]
        # Which one comes first must not count; the order is the same in every session.
        random.Random(len(self.rounds)).shuffle(order)  # noqa: S311
        what = f"round {len(self.rounds) + 1}"
        found = {name: run for name in order if (run := self._run(name, what)) is not None}
        if self._baseline not in found:
            # Without it there is nothing to compare the others with in this round: those before it stand.
            return False
        self.rounds.append(found)
        return True


def compare_variants(
    managers: Mapping[str, tuple[Variant, OMPProcessManager]],
    settings: Settings,
    progress: Callable[[str, float], object] = lambda _text, _done: None,
) -> Comparison:
    """Run the command under every variant until the ratios to the first one are narrow, or the budget is spent.

    `progress` is called before each run with what is done and how much of the budget is spent, 0 to 1. A variant that
    fails or takes too long later on is left out, with the reason. After a signal that ends, the rounds before it are
    returned, with `interrupted_by`.

    Raises:
        CommandFailedError: the command fails under a variant right away.
        InterruptedBySignalError: a signal came before the first round was complete.
        RequestError: not one round fits into the budget, or fewer than two variants are left.
    """
    require_proc()
    interrupted_by = None
    with SignalReceiver() as signals, RankGuard() as guard:
        session = _Session(managers, settings, progress, signals, guard)
        try:
            session.warm_up()
            while len(session.alive) > 1 and session.add_round():
                if _is_narrow(session.rounds, session.alive, settings):
                    break
        except InterruptedBySignalError as error:
            if not session.rounds:
                raise
            interrupted_by = error.number
    baseline = next(iter(managers))
    kept = [name for name in managers if name in session.alive or name == baseline]
    if len(kept) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in session.left_out.items())
        raise RequestError(f"only {kept[0]} is left to compare ({reasons})")
    if not session.rounds:
        raise RequestError(
            f"the budget of {settings.budget_seconds:.0f} seconds is too little for one round; raise --budget, or name"
            " fewer variants (--variant)"
        )
    rounds = [found for found in session.rounds if found.keys() >= set(kept)]
    left_out = {name: reason for name, reason in session.left_out.items() if name not in kept}
    found = conclude([managers[name][0] for name in kept], rounds, settings, left_out)
    return found._replace(interrupted_by=interrupted_by)


def conclude(variants: Sequence[Variant], rounds: Rounds, settings: Settings, left_out: dict[str, str]) -> Comparison:
    """Return the result of the rounds; the first variant is the baseline."""
    names = [variant.name for variant in variants]
    counted, quiet = counted_rounds(rounds, fewest_values(confidence_of_each(len(names) - 1)))

    def speed(name: str, other: str) -> Interval:
        return _speed(name, other, rounds, counted, settings, len(names) - 1)

    results = tuple(
        Result(
            variant,
            tuple(found[variant.name] for found in rounds),
            median_interval([rounds[turn][variant.name].figure for turn in counted]),
            speed(variant.name, names[0]),
            EQUAL if variant.name == names[0] else verdict(speed(variant.name, names[0]), settings.precision),
        )
        for variant in variants
    )
    narrow = _is_narrow(rounds, names, settings)
    advice = advise(variants, speed, settings.precision)
    return Comparison(settings, results, len(rounds), tuple(counted), quiet, narrow, left_out, advice)


def counted_rounds(rounds: Rounds, fewest: int) -> tuple[list[int], bool]:
    """Return the rounds that count, and whether they are quiet: those without other busy processes, or else all."""
    quiet = [
        turn
        for turn, found in enumerate(rounds)
        if all(run.others <= QUIET_CPUS or run.seconds < SHORTEST_SECONDS for run in found.values())
    ]
    return (quiet, True) if len(quiet) >= fewest else ([*range(len(rounds))], len(quiet) == len(rounds))


def _speed(
    name: str, other: str, rounds: Rounds, counted: Sequence[int], settings: Settings, comparisons: int
) -> Interval:
    """Return how fast a variant is relative to another one, round by round; so sure that all intervals hold at once."""
    mine = [rounds[turn][name].figure for turn in counted]
    theirs = [rounds[turn][other].figure for turn in counted]
    if not all(figure > 0 for figure in (*mine, *theirs)):
        raise CommandFailedError("the figures must be above 0, for they are divided by each other")
    confidence = confidence_of_each(comparisons)
    return paired_ratio(theirs, mine, confidence) if settings.lower else paired_ratio(mine, theirs, confidence)


def _is_narrow(rounds: Rounds, names: Sequence[str], settings: Settings) -> bool:
    """Return whether every ratio to the first variant is known to the precision."""
    rounds = [found for found in rounds if found.keys() >= set(names)]
    counted, _ = counted_rounds(rounds, fewest_values(confidence_of_each(len(names) - 1)))
    if not counted:
        return False
    return all(
        _speed(name, names[0], rounds, counted, settings, len(names) - 1).width <= 2 * settings.precision
        for name in names[1:]
    )
