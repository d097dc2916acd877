"""Lines, messages and tables without colours in cells, for verbs that must start fast: rich is not loaded.

Styles only on a terminal and without NO_COLOR. A table is at most as wide as the terminal, or 80 columns in a pipe; a
line has any length, and the terminal wraps it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import TYPE_CHECKING

from ompaffinity.cli import log
from ompaffinity.ids import format_folded_id_list
from ompaffinity.shown import shown
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from typing import TextIO

    from ompaffinity.messages import Message

STYLES: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "bold": (None, ("bold",)),
    "dim": (None, ("dark",)),
    "note": ("cyan", ()),
    "warning": ("yellow", ("bold",)),
    "problem": ("red", ("bold",)),
    "good": ("green", ("bold",)),
}
"""{style, or level of a message: (colour, attributes)}, in the words of termcolor."""
MIN_COLUMNS = 40
"""Tables are not drawn narrower, also where the terminal is, or where COLUMNS is 0."""
NO_BREAK_HYPHEN = "\u2011"


def print_line(*parts: str | tuple[str, str], stream: TextIO | None = None) -> None:
    """Print one line on `stream` (None: standard output); a part is a text, or a text with a style of `STYLES`."""
    stream = sys.stdout if stream is None else stream
    texts = [_styled(part, "", stream) if isinstance(part, str) else _styled(*part, stream) for part in parts]
    # Flushed, so that a message stands below the table that it belongs to where both streams are one file.
    print("".join(texts), file=stream, flush=True)


def print_messages(messages: Iterable[Message]) -> None:
    """Print messages on standard error, one line each: ``warning: TEXT [code]``; nothing with --quiet."""
    for message in () if log.is_quiet() else messages:
        level, code = (f"{message.level}: ", message.level), (f" [{message.code}]", "dim")
        print_line(level, message.message, code, stream=sys.stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> None:
    """Print a table; the columns in `right` are right-aligned. A list in a cell wraps at its commas."""
    cells = [[shown(cell) for cell in row] for row in rows]
    text = _drawn(columns, cells, right, width=0)
    width = max(terminal_columns(), MIN_COLUMNS)
    if max(map(len, text.splitlines())) > width:
        # The library wraps at blanks and hyphens: a list is to wrap at its commas, and an option not at all.
        cells = [[re.sub(r",(?=\S)", ", ", cell).replace("-", NO_BREAK_HYPHEN) for cell in row] for row in cells]
        text = _drawn(columns, cells, right, width).replace(NO_BREAK_HYPHEN, "-")
    heading, rule, body = text.partition(f"\n{_rule()}")
    headings = [_styled(line.rstrip(), "bold", sys.stdout) for line in heading.splitlines()]
    print("\n".join([*headings, *(line.rstrip() for line in f"{rule}{body}"[1:].splitlines())]), flush=True)


def terminal_columns() -> int:
    """Return the width of the terminal; 80 in a pipe."""
    return shutil.get_terminal_size((80, 24)).columns


def ids_text(ids: Iterable[int], empty: str = "") -> str:
    """Return a set of CPUs or nodes as a list with strides: ``1-63:2``; `empty` for none."""
    return format_folded_id_list(ids) or empty


def format_bytes(count: int | None) -> str:
    """Return a number of bytes in GiB; ``unknown`` for none."""
    return "unknown" if count is None or count == UNKNOWN else f"{count / 2**30:.1f} GiB"


def _drawn(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str], width: int) -> str:
    """Return a table, at most `width` columns wide (0: as wide as its cells)."""
    from texttable import Texttable

    table = Texttable(width)
    table.set_deco(Texttable.HEADER)
    table.set_chars([_rule()] * 4)
    alignment = ["r" if column in right else "l" for column in columns]
    table.set_cols_align(alignment)
    table.set_header_align(alignment)
    table.set_cols_dtype(["t"] * len(columns))
    table.header(columns)
    for row in rows:
        table.add_row(row)
    text: str = table.draw()
    return text


def _rule() -> str:
    """Return the letter of the line below the headings, in what the output can encode."""
    return "─" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"


def _styled(text: str, style: str, stream: TextIO) -> str:
    """Return a text with its control characters escaped, and in its style where `stream` shows styles."""
    text = shown(text)
    if not (style and text and _has_styles(stream)):
        return text
    from termcolor import colored

    colour, attributes = STYLES[style]
    return colored(text, colour, attrs=attributes, force_color=True)


def _has_styles(stream: TextIO) -> bool:
    """Whether a stream shows styles; the variables are those of no-color.org and force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")
