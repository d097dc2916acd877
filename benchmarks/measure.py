"""Interleaved timing of commands: every round runs each once, so that a slow phase of the machine hits all alike."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


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


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Return the ratio of the medians, of the least times, and the 10th and 90th percentile round by round."""
    rounds = sorted(top / bottom for top, bottom in zip(numerator, denominator))
    tenth = len(rounds) // 10
    return {
        "medians": statistics.median(numerator) / statistics.median(denominator),
        "least": min(numerator) / min(denominator),
        "10 %": rounds[tenth],
        "90 %": rounds[-1 - tenth],
    }


def ratio_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table of ratios."""
    columns = next(iter(rows.values()))
    lines = [f"| ratio | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        digits = 3 if max(row.values()) < 0.1 else 2
        lines.append(f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in row.values())} |")
    return "\n".join(lines)


def table(times: Mapping[str, Sequence[float]]) -> str:
    """Return a Markdown table of the runs in milliseconds."""
    lines = ["| what | median ms | least ms | most ms |", "|---|---|---|---|"]
    for name, seconds in times.items():
        numbers = [statistics.median(seconds), min(seconds), max(seconds)]
        lines.append(f"| {name} | {' | '.join(f'{1000 * number:.1f}' for number in numbers)} |")
    return "\n".join(lines)
