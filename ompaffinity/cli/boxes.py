"""The layout of pictures: boxes with a size that are arranged in rows. Nothing here draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from ompaffinity.topology.model import LogicalCPUInfo

GAP = 4
WIDE = 2.0
"""How many times as wide as high a picture is."""


class Box(NamedTuple):
    """A size in pixels, and the function that draws it: called with (drawing, x, y)."""

    width: float
    height: float
    draw: Callable[[Any, float, float], None]


def groups_of(
    cpus: Iterable[LogicalCPUInfo], key: Callable[[LogicalCPUInfo], int]
) -> list[tuple[int, list[LogicalCPUInfo]]]:
    """Return (number, CPUs) of each group, by first CPU, the unknown one last."""
    groups: dict[int, list[LogicalCPUInfo]] = {}
    for cpu in cpus:
        groups.setdefault(key(cpu), []).append(cpu)
    return sorted(groups.items(), key=lambda item: (item[0] == UNKNOWN, item[1][0].id))


def beside(boxes: Sequence[Box]) -> Box:
    """Arrange boxes in one row."""
    return rows_of(boxes, len(boxes), GAP)


def flow(boxes: Sequence[Box], wide: float = WIDE) -> Box:
    """Arrange boxes in rows so that the result is about `wide` times as wide as high."""
    candidates = (rows_of(boxes, columns, GAP) for columns in range(1, len(boxes) + 1))
    return min(candidates, key=lambda box: abs(box.width / max(box.height, 1) - wide))


def rows_of(boxes: Sequence[Box], columns: int, gap: float) -> Box:
    """Arrange boxes in `columns` columns, each as wide as its widest box."""
    rows = [boxes[start : start + columns] for start in range(0, len(boxes), columns)]
    widths = [max(row[column].width for row in rows if column < len(row)) for column in range(len(rows[0]))]
    heights = [max(box.height for box in row) for row in rows]

    def draw(drawing: Any, x: float, y: float) -> None:
        down = y
        for row, height in zip(rows, heights):
            across = x
            for box, width in zip(row, widths):
                box.draw(drawing, across, down)
                across += width + gap
            down += height + gap

    return Box(sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1), draw)
