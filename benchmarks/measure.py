"""Interleaved timing of commands: every round runs each once, so that a slow phase of the machine hits all alike."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from ompaffinity.measure.statistics import Interval, median_interval, paired_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


def time_commands(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Return the wall-clock seconds of every run, after one round that is not counted.

    Each round has an order of its own, for a command is faster after a similar one. The package is the one that is
    installed, not that of the current directory, and it is compiled.
    """
    times: dict[str, list[float]] = {name: [] for name in commands}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            for name, command in random.sample(list(commands.items()), len(commands)):
                start = time.perf_counter()
                subprocess.run(command, stdout=subprocess.DEVNULL, check=True, cwd=folder, env=environment)
                if turn:
                    times[name].append(time.perf_counter() - start)
    return times


def time_calls(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every call, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Return the ratio of the medians and of the least times, and round by round its median with a 95 % interval."""
    return {
        "medians": statistics.median(numerator) / statistics.median(denominator),
        "least": min(numerator) / min(denominator),
        "round by round": paired_ratio(numerator, denominator)._asdict(),
    }


def ratio_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of ratios."""
    lines = ["| ratio | round by round, with 95 % interval | of the medians | of the least |", "|---|---|---|---|"]
    for name, row in rows.items():
        interval = Interval(**row["round by round"])
        digits = 3 if interval.median < 0.1 else 2
        cells = [interval_text(interval, digits), *(f"{row[field]:.{digits}f}" for field in ("medians", "least"))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(times: Mapping[str, Sequence[float]]) -> str:
    """Return a Markdown table of the runs in milliseconds."""
    lines = ["| what | median ms, with 95 % interval | least ms | most ms |", "|---|---|---|---|"]
    for name, seconds in times.items():
        milliseconds = [1000 * value for value in seconds]
        cells = [
            interval_text(median_interval(milliseconds), 1),
            f"{min(milliseconds):.1f}",
            f"{max(milliseconds):.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval_text(interval: Interval, digits: int = 2) -> str:
    """Return ``"1.02 [0.98, 1.15]"``, or the median alone where there are too few values."""
    if interval.low is None or interval.high is None:
        return f"{interval.median:.{digits}f}"
    return f"{interval.median:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
