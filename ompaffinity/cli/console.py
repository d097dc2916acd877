"""The console and its tables, drawn with rich: colour only on a terminal and without NO_COLOR, 80 columns in a pipe."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ompaffinity.cli import log
from ompaffinity.ids import format_folded_id_list
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderResult

    from ompaffinity.messages import Message

LEVEL_STYLES = {"warning": "bold yellow", "note": "cyan"}


def new_console(*, stderr: bool = False) -> Console:
    """Return a console with the width of the terminal, or 80 columns in a pipe."""
    # With COLUMNS=0 rich prints nothing, hence the minimum width.
    columns, lines = shutil.get_terminal_size((80, 24))
    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        width=max(columns, 40),
        height=lines,
        # A message is one line of any length, which the terminal wraps.
        soft_wrap=stderr,
    )


def new_table(*columns: str, right: Iterable[str] = ()) -> Table:
    """Return an empty table with these columns; those in `right` are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


class Cell:
    """A list with commas in a table: it wraps at commas, never inside of a number or a range."""

    def __init__(self, text: str) -> None:
        self._parts = [f"{part}," for part in text.split(",")]
        self._parts[-1] = self._parts[-1][:-1]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width of the longest part, and that of the whole list."""
        widths = [len(part) for part in self._parts]
        return Measurement(max(widths), sum(widths)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line after the other, each as full as possible."""
        lines = [""]
        for part in self._parts:
            if lines[-1] and len(lines[-1]) + len(part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")


def ids_cell(ids: Iterable[int], empty: str = "") -> Cell:
    """Return the cell of a set of CPUs or nodes, with strides: ``1-63:2``; `empty` for none."""
    return Cell(format_folded_id_list(ids) or empty)


def print_messages(messages: Iterable[Message]) -> None:
    """Print messages on standard error, one line each: ``warning: TEXT [code]``; nothing with --quiet."""
    console = new_console(stderr=True)
    for message in () if log.is_quiet() else messages:
        console.print(message_line(message))


def message_line(message: Message) -> Text:
    """Return ``str(message)`` with its level in colour and its code dimmed."""
    level = (f"{message.level}: ", LEVEL_STYLES[message.level])
    return Text.assemble(level, message.message, (f" [{message.code}]", "dim"))


def format_bytes(count: int | None) -> str:
    """Return a number of bytes in GiB; ``unknown`` for none."""
    return "unknown" if count is None or count == UNKNOWN else f"{count / 2**30:.1f} GiB"
