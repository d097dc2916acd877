"""What compare prints, line by line."""

from __future__ import annotations

import re

import pytest

from ompaffinity.cli.measured import print_comparison
from ompaffinity.measure.advice import Advice
from ompaffinity.measure.session import Comparison, Result, Settings
from ompaffinity.measure.statistics import Interval
from ompaffinity.measure.variants import Variant
from ompaffinity.messages import Message
from tests.cli.tables import cells, lines_below, table

PLAN = Result(Variant("plan", "as planned"), (), Interval(1.23456, 1.0, 1.5), Interval(1.0), "")
SLOW = Result(Variant("none", "not bound"), (), Interval(2.5), Interval(0.5, 0.4, 0.625), "slower")
SHORT = Result(Variant("brief", "brief waits"), (), Interval(1.2), Interval(1.0289), "unclear")
COMPARISON = Comparison(
    Settings(("true",)),
    (PLAN, SLOW, SHORT),
    rounds=12,
    counted=tuple(range(10)),
    quiet=True,
    narrow=True,
    left_out={},
    advice=Advice("plan", "Use plan.", {}),
)
ROUNDS = "12 rounds, 10 of them used; medians, with simultaneous 95 % confidence intervals of the ratios"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_a_row_per_variant_with_its_speed(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(COMPARISON, ())
    text = capsys.readouterr().out
    assert cells(text.splitlines()[0]) == ["variant", "settings", "seconds", "speed, plan = 1", "verdict"]
    assert table(text, "variant") == [
        ["plan", "as planned", "1.235", "1"],
        ["none", "not bound", "2.5", "0.500 [0.400, 0.625]", "slower"],
        ["brief", "brief waits", "1.2", "1.029", "unclear"],
    ]
    assert lines_below(text) == [ROUNDS, "", "Use plan."]


def test_figures_of_the_command_are_named_so(capsys: pytest.CaptureFixture[str]) -> None:
    settings = COMPARISON.settings._replace(metric=re.compile("x"))
    print_comparison(COMPARISON._replace(settings=settings), ())
    assert cells(capsys.readouterr().out.splitlines()[0])[2] == "figure"


def test_the_limits_of_a_measurement_are_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(
        COMPARISON._replace(quiet=False, narrow=False, left_out={"libgomp": "not installed"}),
        [Message("a-code", "note", "a text")],
    )
    captured = capsys.readouterr()
    assert lines_below(captured.out) == [
        ROUNDS,
        "other processes used the CPUs in too many rounds to exclude these: treat with caution",
        "the intervals are wider than --precision; raise --budget for more rounds",
        "left out libgomp: not installed",
        "",
        "Use plan.",
    ]
    assert captured.err == "note: a text [a-code]\n"


def test_a_measurement_that_was_ended_is_incomplete(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(COMPARISON._replace(narrow=False, interrupted_by=2), ())
    assert lines_below(capsys.readouterr().out) == [
        "incomplete: ended by signal 2 after 12 rounds",
        ROUNDS,
        "",
        "Use plan.",
    ]
