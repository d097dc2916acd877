"""What a printed table has."""

from __future__ import annotations


def cells(line: str) -> list[str]:
    """Return the cells of a line; columns are three blanks apart, or more."""
    return [cell.strip() for cell in line.split("   ") if cell.strip()]


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose first heading this is, without the headings and the rule."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if cells(line)[:1] == [first])
    rows = []
    for line in lines[start + 2 :]:
        if "   " not in line.strip():
            break
        rows.append(cells(line))
    return rows


def lines_below(text: str) -> list[str]:
    """Return the lines below a table, which an empty line ends."""
    lines = [line.rstrip() for line in text.splitlines()]
    return lines[lines.index("") + 1 :]
