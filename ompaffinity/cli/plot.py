"""The plot of ``compare``: a line per variant with its interval, drawn with drawsvg (the extra ``[svg]``)."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.files import write_whole
from ompaffinity.interpreter import install_command

if TYPE_CHECKING:
    from ompaffinity.measure.session import Comparison

WIDTH, ROW, RIGHT, TOP, LETTER = 600, 30, 60, 60, 7.5
INK, PALE, COLOURS = "#444444", "#bbbbbb", {"faster": "#0072b2", "slower": "#d55e00"}
"""Blue and vermilion of Okabe and Ito, distinguishable for colour-blind readers."""


def check_plots(path: str) -> None:
    """Check before the measurement that the plot can be written after it.

    Raises:
        RequestError: drawsvg is not installed, or the folder of the file is not writable.
    """
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        raise RequestError(f"--svg {path} cannot be written; name a file in a writable folder")
    try:
        import drawsvg  # noqa: F401
    except ImportError:
        raise RequestError(f"--svg requires drawsvg; install it with: {install_command('ompaffinity[svg]')}") from None


def write_plot(comparison: Comparison, path: str) -> None:
    """Write the speeds of all variants relative to the first one, with their intervals.

    Raises:
        RequestError: the file cannot be written.
    """
    import drawsvg as svg

    ends = [
        end
        for result in comparison.results
        for end in (result.speed.median, result.speed.low, result.speed.high)
        if end is not None
    ]
    low, high = min(*ends, 0.9), max(*ends, 1.1)

    left = 30 + LETTER * max(len(result.variant.name) for result in comparison.results)

    def place(speed: float) -> float:
        return left + WIDTH * math.log(speed / low) / math.log(high / low)

    width, height = left + WIDTH + RIGHT, TOP + ROW * len(comparison.results) + 30
    drawing = svg.Drawing(width, height, font_family="sans-serif")
    drawing.append(svg.Rectangle(0, 0, width, height, fill="white"))
    baseline = comparison.results[0].variant.name
    drawing.append(
        svg.Text(f"Speed relative to {baseline}: medians, simultaneous 95 % intervals", 15, 15, 25, fill=INK)
    )
    load = "" if comparison.quiet else ", with load of other processes"
    rounds = f"{len(comparison.counted)} rounds{load}; right is faster"
    drawing.append(svg.Text(rounds, 12, 15, 43, fill=INK))
    drawing.append(svg.Line(place(1), TOP - 8, place(1), height - 28, stroke=PALE))
    for tick in sorted({low, 1.0, high}):
        drawing.append(svg.Text(f"{tick:.2f}", 11, place(tick), height - 12, text_anchor="middle", fill=INK))
    for row, result in enumerate(comparison.results):
        y = TOP + ROW * row + ROW / 2
        colour = COLOURS.get(result.verdict, INK)
        drawing.append(svg.Text(result.variant.name, 13, left - 12, y + 4, text_anchor="end", fill=INK))
        if result.speed.low is not None and result.speed.high is not None:
            ends_of = (place(result.speed.low), place(result.speed.high))
            drawing.append(svg.Line(ends_of[0], y, ends_of[1], y, stroke=colour, stroke_width=3))
        mark = svg.Circle(place(result.speed.median), y, 5, fill=colour)
        mark.append_title(f"{result.variant.name}: {result.variant.summary}, {result.verdict}")
        drawing.append(mark)
    try:
        write_whole(path, drawing.as_svg().encode())
    except OSError as error:
        raise RequestError(f"--svg {path} cannot be written: {error.strerror}") from None
