"""The console and its tables with colours in cells, drawn with rich: what verbs use that take seconds.

Colour only on a terminal and without NO_COLOR; 80 columns in a pipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ompaffinity.cli.text import MIN_COLUMNS, ids_text, terminal_columns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderResult


def new_console() -> Console:
    """Return a console with the width of the terminal, or 80 columns in a pipe."""
    return Console(highlight=False, markup=False, emoji=False, width=max(terminal_columns(), MIN_COLUMNS))


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
    return Cell(ids_text(ids, empty))
