"""Workers that are alive for a whole run and take turns: in shuffled rounds each team works while the others sleep.

So a slow phase of the machine hits all alike, and no start-up is measured.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.measure import interval_text
from ompaffinity.measure.session import QUIET_CPUS
from ompaffinity.measure.statistics import Interval, median_interval, paired_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection

WARM_UP, REST_SECONDS = 2, 0.3


class Team(NamedTuple):
    """The ranks of one variant."""

    connections: list[Connection]
    processes: list[Any]


class Window(NamedTuple):
    """What one team did in one round: steps per second of all its ranks, and the CPUs that others took."""

    rate: float
    others: float


def start_team(
    ranks: int, start: Callable[[int], AbstractContextManager[object]], target: Any, arguments: tuple[Any, ...]
) -> Team:
    """Start ``target(rank, *arguments, connection)`` for each rank in its context, and wait until all are ready."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for rank in range(ranks):
        ours, theirs = context.Pipe()
        with start(rank):
            process = context.Process(target=target, args=(rank, *arguments, theirs))
            process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    for connection in connections:
        connection.recv()
    return Team(connections, processes)


@contextmanager
def alive(teams: Mapping[str, Team]) -> Iterator[None]:
    """End the workers of these teams with the context."""
    try:
        yield
    finally:
        for team in teams.values():
            for connection in team.connections:
                connection.send(0)
            for process in team.processes:
                process.join()


def serve(connection: Any, step: Callable[[], object]) -> None:
    """Take steps in a worker for as long as is asked for, again and again, and return their number each time."""
    connection.send("ready")
    while seconds := connection.recv():
        steps, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            step()
            steps += 1
        connection.send(steps)


def measured(
    teams: Mapping[str, Team], rounds: int, seconds: float, cpus: Sequence[int], load: Sequence[Any] = ()
) -> dict[str, list[Window]]:
    """Return the windows of every team, in order of the rounds; `load` are processes that the benchmark started."""
    found: dict[str, list[Window]] = {name: [] for name in teams}
    names = [*teams]
    for turn in range(rounds + WARM_UP):
        random.Random(turn).shuffle(names)  # noqa: S311
        for name in names:
            window = _window(teams[name], seconds, cpus, load)
            if turn >= WARM_UP:
                found[name].append(window)
    return found


def _window(team: Team, seconds: float, cpus: Sequence[int], load: Sequence[Any]) -> Window:
    known = [process.pid for process in (*team.processes, *load)]
    # What the last team's idle threads still spin (libiomp5: 200 ms) is over.
    time.sleep(REST_SECONDS)
    busy, own = _busy(cpus), _used([*known, os.getpid()])
    start = time.perf_counter()
    for connection in team.connections:
        connection.send(seconds)
    steps = [connection.recv() for connection in team.connections]
    took = time.perf_counter() - start
    others = (_busy(cpus) - busy - (_used([*known, os.getpid()]) - own)) / took
    return Window(sum(steps) / took, max(0.0, others))


def _busy(cpus: Sequence[int]) -> float:
    names = {f"cpu{cpu}" for cpu in cpus}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = sum(int(row[place]) for row in rows if row[0] in names for place in (1, 2, 3, 6, 7, 8))
    return ticks / os.sysconf("SC_CLK_TCK")


def _used(pids: Sequence[int]) -> float:
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def quiet_rounds(rounds: Mapping[str, Sequence[Window]]) -> list[int]:
    """Return the rounds in which others left the CPUs alone; all, where those are fewer than half."""
    count = len(next(iter(rounds.values())))
    quiet = [turn for turn in range(count) if all(windows[turn].others <= QUIET_CPUS for windows in rounds.values())]
    return quiet if len(quiet) >= count // 2 else [*range(count)]


def compared(rounds: Mapping[str, Sequence[Window]], base: str) -> dict[str, Any]:
    """Return the rate of each team and its ratio to that of `base`, in the quiet rounds."""
    counted = quiet_rounds(rounds)
    rates = {name: [windows[turn].rate for turn in counted] for name, windows in rounds.items()}
    rows = {
        name: {
            "rate": median_interval(values)._asdict(),
            f"to {base}": paired_ratio(values, rates[base])._asdict(),
            "windows": [window._asdict() for window in rounds[name]],
        }
        for name, values in rates.items()
    }
    return {"counted": counted, "base": base, "rows": rows}


def comparison_table(title: str, report: Mapping[str, Any]) -> str:
    """Return a Markdown table of what `compared` returned."""
    column = f"to {report['base']}"
    lines = [f"### {title} ({len(report['counted'])} rounds)\n", f"| variant | steps/s | {column} |", "|---|---|---|"]
    for name, row in report["rows"].items():
        rate, ratio = Interval(**row["rate"]), Interval(**row[column])
        lines.append(f"| {name} | {interval_text(rate, 1)} | {interval_text(ratio)} |")
    return "\n".join(lines) + "\n"


def summary_table(variant: str, reports: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of one variant's ratios to the base, of reports with the keys ``row`` and ``column``."""
    columns = list(dict.fromkeys(str(report["column"]) for report in reports))
    cells: dict[str, dict[str, str]] = {}
    for report in reports:
        if variant in report["rows"]:
            ratio = Interval(**report["rows"][variant][f"to {report['base']}"])
            cells.setdefault(str(report["row"]), {})[str(report["column"])] = interval_text(ratio)
    lines = [
        f"### {variant}, relative to {reports[0]['base']}\n",
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {row} | {' | '.join(found.get(column, '') for column in columns)} |" for row, found in cells.items()),
    ]
    return "\n".join(lines) + "\n"


def written(head: str, reports: Sequence[Mapping[str, Any]]) -> str:
    """Return the whole text of the results: a summary of each variant but the base, then every table."""
    variants = dict.fromkeys(name for report in reports for name in report["rows"] if name != report["base"])
    summaries = (summary_table(variant, reports) for variant in variants)
    return "\n".join([head, *summaries, *(comparison_table(report["title"], report) for report in reports)])
