"""The table of ``compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ompaffinity.cli.console import new_console, new_table
from ompaffinity.cli.text import print_messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.measure.session import Comparison
    from ompaffinity.measure.statistics import Interval
    from ompaffinity.messages import Message

STYLES = {"faster": "bold green", "slower": "bold red"}


def print_comparison(comparison: Comparison, messages: Iterable[Message]) -> None:
    """Print a row per variant, the advice, and the limits of the measurement."""
    console = new_console()
    settings = comparison.settings
    figure = "seconds" if settings.metric is None else "figure"
    baseline = comparison.results[0].variant.name
    table = new_table("variant", "settings", figure, f"speed, {baseline} = 1", "verdict", right=(figure,))
    for result in comparison.results:
        table.add_row(
            result.variant.name,
            result.variant.summary,
            f"{result.figure.median:.4g}",
            _interval(result.speed) if result.variant.name != baseline else "1",
            Text(result.verdict if result.variant.name != baseline else "", STYLES.get(result.verdict, "")),
        )
    console.print(table)
    console.print()
    if comparison.interrupted_by is not None:
        text = f"incomplete: ended by signal {comparison.interrupted_by} after {comparison.rounds} rounds"
        console.print(Text(text, "bold"))
    rounds = (
        f"{comparison.rounds} rounds, {len(comparison.counted)} of them used; medians, with simultaneous 95 %"
        " confidence intervals of the ratios"
    )
    console.print(Text(rounds, "dim"))
    if not comparison.quiet:
        console.print(Text("other processes used the CPUs in too many rounds to exclude these: treat with caution"))
    if not comparison.narrow and comparison.interrupted_by is None:
        console.print(Text("the intervals are wider than --precision; raise --budget for more rounds", "dim"))
    for name, reason in comparison.left_out.items():
        console.print(Text(f"left out {name}: {reason}", "dim"))
    print_messages(messages)
    console.print()
    console.print(Text(comparison.advice.text, "bold"))


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.median:.3f}"
    return f"{interval.median:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
