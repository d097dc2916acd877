"""The table of ``watch``: one row per rank, and the last changes below."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from ompaffinity.cli.console import new_console, new_table
from ompaffinity.cli.proof_tables import VERDICT_STYLES
from ompaffinity.shown import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from ompaffinity.proof.watch_status import RankStatus, WatchStatus

SHOWN_CHANGES = 8
UNKNOWN = "-"


def status_table(status: WatchStatus) -> RenderableType:
    """Return the table of all ranks."""
    right = ("rank", "pid", "busy", "waits", "others", "local", "remote", "drifts")
    table = new_table("rank", "pid", "verdict", "busy", "waits", "others", "local", "remote", "drifts", right=right)
    for rank in status.ranks:
        table.add_row(
            str(rank.rank),
            UNKNOWN if rank.pid is None else str(rank.pid),
            Text(rank.verdict, style=VERDICT_STYLES[rank.verdict]),
            f"{UNKNOWN if rank.busy_threads is None else rank.busy_threads}/{rank.planned_threads}",
            _percent(rank.delay_share),
            _percent(rank.foreign_share),
            _mebibytes(rank.local_bytes),
            _mebibytes(rank.remote_bytes),
            _drifts(rank),
        )
    return table


def print_status(status: WatchStatus) -> None:
    """Print the table once, what differs, and what was repaired."""
    console = new_console()
    console.print(status_table(status))
    console.print()
    for rank in status.ranks:
        for difference in rank.differences:
            console.print(Text(shown(f"rank {rank.rank}: {difference}"), style="red"))
    for change in status.changes:
        console.print(Text(shown(str(change))))
    console.print(Text(f"All ranks together: {status.verdict}.", style=VERDICT_STYLES[status.verdict]))


@contextmanager
def live_table() -> Iterator[Callable[[WatchStatus], None]]:
    """Yield what shows a status in place of the one before, with the last changes and the age of the memory figures."""
    lines: list[str] = []
    with Live(console=new_console(), auto_refresh=False) as live:

        def update(status: WatchStatus) -> None:
            now = time.strftime("%H:%M:%S")
            lines.extend(f"{now} {shown(str(change))}" for change in status.changes)
            del lines[:-SHOWN_CHANGES]
            ages = [rank.memory_age for rank in status.ranks if rank.memory_age is not None]
            memory = f", memory as of {max(ages):.0f} seconds ago" if ages else ""
            title = Text(f"{now}: {status.verdict}{memory}; Ctrl-C ends", style="dim")
            live.update(Group(title, status_table(status), Text(), *map(Text, lines)), refresh=True)

        yield update


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.0%}"


def _mebibytes(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count / 2**20:.0f} MiB"


def _drifts(rank: RankStatus) -> str:
    repairs = f", {rank.repairs} repaired" if rank.repairs else ""
    restarts = f", {rank.restarts} restarted" if rank.restarts else ""
    return f"{rank.drifts}{repairs}{restarts}"
