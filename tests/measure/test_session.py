"""What rounds show, and when to stop; the runs are synthetic."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.measure import session
from ompaffinity.measure.advice import verdict
from ompaffinity.measure.runs import CommandFailedError, Run, TooSlowError
from ompaffinity.measure.session import Settings, compare_variants, conclude, counted_rounds
from ompaffinity.measure.statistics import Interval
from ompaffinity.measure.variants import VARIANTS

SETTINGS = Settings(("command",), budget_seconds=60)


def rounds_of(others: dict[int, float] | None = None, **seconds: list[float]) -> list[dict[str, Run]]:
    count = len(next(iter(seconds.values())))
    names = {name: name.replace("_", "-") for name in seconds}
    return [
        {
            names[name]: Run(values[turn], values[turn], (others or {}).get(turn, 0.0))
            for name, values in seconds.items()
        }
        for turn in range(count)
    ]


def reported(settings: Settings = SETTINGS, others: dict[int, float] | None = None, **seconds: list[float]) -> Any:
    variants = [VARIANTS[name.replace("_", "-")] for name in seconds]
    return conclude(variants, rounds_of(others, **seconds), settings, {})


def test_a_difference_is_one_only_where_the_interval_leaves_no_doubt() -> None:
    found = reported(none=[2.0] * 8, plan=[1.0] * 8, team=[2.0, 2.02, 1.98, 2.0, 2.05, 1.97, 2.0, 2.0], span=[4.0] * 8)
    assert [result.verdict for result in found.results] == ["no difference", "faster", "no difference", "slower"]
    assert found.results[1].speed == Interval(2.0, 2.0, 2.0)
    assert found.advice.variant == "plan"
    assert "span, runs at 0.25" in found.advice.text
    assert "none at 0.50" in found.advice.text


def test_a_larger_figure_is_better_or_a_smaller_one() -> None:
    higher = reported(SETTINGS._replace(lower=False), none=[2.0] * 6, plan=[1.0] * 6)
    assert higher.results[1].verdict == "slower"
    assert reported(none=[2.0] * 6, plan=[1.0] * 6).results[1].verdict == "faster"


def test_the_plan_is_advised_unless_another_variant_is_significantly_faster() -> None:
    noisy = [1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 1.0, 1.0]
    assert reported(none=noisy, plan=noisy[::-1], team=noisy).advice.variant == "plan"
    text = reported(none=noisy, plan=noisy[::-1], team=noisy).advice.text
    assert "does not matter" in text
    assert reported(none=[1.0] * 8, plan=[1.5] * 8).advice.variant == "none"
    team = reported(none=[2.0] * 8, plan=[1.5] * 8, team=[1.0] * 8).advice
    assert team.variant == "team"
    assert "(--granularity team)" in team.text
    assert team.speeds["plan"].median == pytest.approx(1 / 1.5)


def test_too_few_rounds_advise_nothing() -> None:
    found = reported(none=[2.0] * 5, plan=[1.0] * 5)
    assert found.results[1].verdict == "unclear"
    assert found.advice.variant is None
    assert "raise --budget" in found.advice.text


@pytest.mark.parametrize("names", [("none", "team"), ("threads", "mask", "team")])
def test_of_equal_variants_one_with_a_plan_is_advised(names: tuple[str, ...]) -> None:
    assert reported(SETTINGS, None, **{name: [1.0] * 8 for name in names}).advice.variant == "team"


def test_more_variants_need_more_rounds_for_the_same_confidence() -> None:
    three = {"none": 2.0, "plan": 1.0, "team": 1.0}
    intervals = {}
    for count in (6, 7):
        found = reported(SETTINGS, None, **{name: [one] * count for name, one in three.items()})
        intervals[count] = [result.speed.low for result in found.results]
    assert intervals == {6: [None] * 3, 7: [1.0, 2.0, 2.0]}
    four = reported(SETTINGS, None, **{name: [one] * 7 for name, one in {**three, "span": 4.0}.items()})
    assert [result.speed.low for result in four.results] == [1.0, 2.0, 2.0, 0.5]


def test_disturbed_rounds_count_where_the_quiet_ones_are_too_few() -> None:
    three = {name: [1.0] * 8 for name in ("none", "plan", "team")}
    found = reported(SETTINGS, {0: 0.9, 7: 0.9}, **three)
    assert (found.counted, found.quiet, found.narrow) == (tuple(range(8)), False, True)
    wild = {name: [one, *[1.0] * 7, one] for name, one in (("none", 9.0), ("plan", 1.0), ("team", 1.0), ("span", 1.0))}
    found = reported(SETTINGS, {0: 0.9, 8: 0.9}, **wild)
    assert (found.counted, found.quiet, found.narrow) == (tuple(range(1, 8)), True, True)


def test_rounds_in_which_others_were_busy_do_not_count_if_there_are_enough_others() -> None:
    disturbed = reported(others={0: 0.9, 7: 0.2}, none=[9.0, *[2.0] * 7], plan=[1.0] * 8)
    assert disturbed.counted == (1, 2, 3, 4, 5, 6)
    assert disturbed.quiet
    busy = reported(others=dict.fromkeys(range(5), 0.5), none=[2.0] * 8, plan=[1.0] * 8)
    assert busy.counted == tuple(range(8))
    assert not busy.quiet


@pytest.mark.parametrize(("seconds", "is_quiet"), [(0.19, True), (0.2, False)])
def test_a_run_of_less_than_a_fifth_of_a_second_is_too_short_to_be_disturbed(seconds: float, is_quiet: bool) -> None:
    rounds = [{"none": Run(seconds, seconds, others=0.9)}] * 6
    assert counted_rounds(rounds, 6) == ([*range(6)], is_quiet)


@pytest.mark.parametrize(("others", "is_quiet"), [(0.15, True), (0.16, False)])
def test_a_round_is_quiet_while_others_use_little_of_one_cpu(others: float, is_quiet: bool) -> None:
    assert counted_rounds([{"none": Run(1.0, 1.0, others)}] * 6, 6) == ([*range(6)], is_quiet)


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        (Interval(1.1, 1.05, 1.2), "faster"),
        (Interval(0.9, 0.85, 0.99), "slower"),
        (Interval(1.0, 0.97, 1.03), "no difference"),
        # A difference, and none that matters.
        (Interval(0.985, 0.98, 0.99), "no difference"),
        (Interval(0.93, 0.917, 1.0), "unclear"),
        # Just beyond twice the precision.
        (Interval(0.97, 0.955, 0.99), "slower"),
        (Interval(1.03, 1.01, 1.045), "faster"),
        # Wide: there may be a difference, and a large one.
        (Interval(1.1, 0.8, 1.5), "unclear"),
        (Interval(1.1), "unclear"),
    ],
)
def test_the_words(interval: Interval, word: str) -> None:
    assert verdict(interval, 0.02) == word


class Clock:
    """A machine on which each run takes as long as the test names, without waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lengths: dict[str, Any]) -> None:
        self.now = 0.0
        self.runs: list[str] = []
        self._lengths = lengths
        monkeypatch.setattr("ompaffinity.measure.session.time.monotonic", lambda: self.now)
        monkeypatch.setattr(session, "measure_run", self.run)

    def run(self, manager: str, command: Any, metric: Any, most: float, *_: Any) -> Run:
        del command, metric
        self.runs.append(manager)
        length = self._lengths[manager]
        seconds = next(length) if hasattr(length, "__next__") else length
        if seconds > most:
            self.now += most
            raise TooSlowError
        self.now += seconds
        return Run(seconds, seconds, 0.0)


def compared(clock: Clock, *names: str, **settings: Any) -> Any:
    assert clock.now == 0
    managers: Any = {name: (VARIANTS[name], name) for name in names}
    return compare_variants(managers, SETTINGS._replace(**settings))


def test_it_ends_when_the_ratios_are_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {"none": 2.0, "plan": 1.0})
    found = compared(clock, "none", "plan", budget_seconds=1000)
    assert (found.rounds, found.narrow) == (6, True)
    # The warm-up comes first, and is not counted.
    assert clock.runs[:2] == ["none", "plan"]
    assert len(clock.runs) == 14
    orders = {tuple(clock.runs[start : start + 2]) for start in range(2, 14, 2)}
    assert orders == {("none", "plan"), ("plan", "none")}


def test_progress_is_the_share_of_the_budget_that_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, {"none": itertools.cycle([2.0, 3.0]), "plan": 1.0})
    seen: list[tuple[str, float]] = []
    managers: Any = {name: (VARIANTS[name], name) for name in ("none", "plan")}
    compare_variants(managers, SETTINGS._replace(budget_seconds=40), lambda text, done: seen.append((text, done)))
    assert seen[:2] == [("warm-up: none", 0.0), ("warm-up: plan", 0.05)]
    assert {text for text, _ in seen[2:4]} == {"round 1: none", "round 1: plan"}
    shares = [done for _, done in seen]
    assert shares == sorted(shares)
    assert shares[2] == 0.075
    assert 0.8 < shares[-1] <= 1


def test_it_ends_when_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {"none": itertools.cycle([1.0, 2.0, 3.0]), "plan": 1.0})
    found = compared(clock, "none", "plan", budget_seconds=40)
    assert not found.narrow
    assert clock.now <= 40
    assert found.rounds > 6


def test_a_variant_that_takes_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {"none": 1.0, "plan": 1.0, "mask": 500.0})
    found = compared(clock, "none", "plan", "mask", budget_seconds=100)
    assert [result.variant.name for result in found.results] == ["none", "plan"]
    assert "takes longer than" in found.left_out["mask"]
    with pytest.raises(RequestError, match="one run under none takes longer"):
        compared(Clock(monkeypatch, {"none": 500.0, "plan": 1.0}), "none", "plan", budget_seconds=100)


def test_a_budget_for_not_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="a run of 3 of 3 variants each takes 42 seconds"):
        compared(Clock(monkeypatch, {"none": 14.0, "plan": 14.0, "mask": 14.0}), "none", "plan", "mask")


def test_a_variant_that_fails_later_is_left_out_and_the_rounds_before_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {"none": 2.0, "plan": 1.0, "mask": 1.0})
    usual = clock.run

    def flaky(manager: str, *rest: Any) -> Run:
        if manager == failing and clock.runs.count(manager) == 4:
            raise CommandFailedError("rank 0 ended with status 1: flaky")
        return usual(manager, *rest)

    failing = "mask"
    monkeypatch.setattr(session, "measure_run", flaky)
    found = compared(clock, "none", "plan", "mask", budget_seconds=1000)
    assert [result.variant.name for result in found.results] == ["none", "plan"]
    assert found.left_out == {"mask": "a run failed: rank 0 ended with status 1: flaky"}
    clock.now, failing = 0.0, "none"
    clock.runs.clear()
    ended = compared(clock, "none", "plan", budget_seconds=1000)
    assert ended.rounds == 3
    assert ended.advice.variant is None


def test_nothing_is_left_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {"none": 1.0, "plan": 500.0})
    with pytest.raises(RequestError, match="plan: a run takes longer than 25 seconds"):
        compared(clock, "none", "plan", budget_seconds=100)


def test_advises_only_what_the_figures_show() -> None:
    wild = [1.0, 2.0, 0.5, 1.5, 0.7, 1.0, 1.0, 1.0]
    unclear = reported(none=[1.0] * 8, plan=wild)
    assert unclear.advice.variant == "plan"
    assert "no verdict for" in unclear.advice.text
    assert "does not matter" not in unclear.advice.text
    # One that is significantly faster is found, whichever has the best median.
    team = reported(none=[1.0] * 12, plan=[1.0] * 12, team=[0.9] * 12, smt=[*[0.5] * 7, *[2.0] * 5])
    assert team.advice.variant == "team"
    # A difference of nothing costs the plan nothing.
    tiny = reported(none=[1.0] * 8, plan=[1.001] * 8)
    assert (tiny.results[1].verdict, tiny.advice.variant) == ("no difference", "plan")


def test_reports_a_failing_command_with_its_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Run:
        raise CommandFailedError("rank 0 ended with status 3: no model")

    monkeypatch.setattr(session, "measure_run", fails)
    managers: Any = {name: (VARIANTS[name], name) for name in ("none", "plan")}
    with pytest.raises(CommandFailedError, match="under none: rank 0 ended with status 3"):
        compare_variants(managers, SETTINGS)


def test_figures_of_nothing_are_refused() -> None:
    with pytest.raises(CommandFailedError, match="above 0"):
        reported(none=[1.0] * 6, plan=[0.0] * 6)
