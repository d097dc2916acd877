"""The colours, patterns and letters of pictures: those of each rank, and those of CPUs that no rank has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.cli.uses import Use

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999933")
DARK_COLOURS = ("#0072b2", "#d55e00")
"""The colours that need white letters."""
STYLE = """
.ground { fill: #ffffff } .word { fill: #222222; font: 11px sans-serif } .small { font-size: 9px }
.package { fill: #f2f2f2; stroke: #888888 } .node { fill: #ffffff; stroke: #666666 }
.l3 { fill: #f7f7f7; stroke: #aaaaaa } .gpu { fill: #ffffff; stroke: #666666 }
.core { fill: none; stroke: #bbbbbb } .free { fill: #cfe3f5 } .sibling { fill: #d9d9d9 }
.idle { fill: #ffffff; stroke: #888888; stroke-dasharray: 2 2 } .barred { fill: #bdbdbd }
.unused-node { stroke-dasharray: 5 2 } .remainder { stroke-dasharray: 5 2 1 2 } .quota { stroke-dasharray: 1 3 }
.off { fill: #f2f2f2; stroke: #cccccc } .stroke { stroke: #777777; stroke-width: 1.2 } .helper { fill: #ffffff }
.on { fill: #111111; font: 9px sans-serif } .light { fill: #ffffff; font: 9px sans-serif }
@media (prefers-color-scheme: dark) {
.ground { fill: #1a1a1a } .word { fill: #eeeeee } .package { fill: #262626; stroke: #777777 }
.node { fill: #1a1a1a; stroke: #999999 } .l3 { fill: #222222; stroke: #666666 } .core { stroke: #555555 }
.gpu { fill: #1a1a1a; stroke: #999999 } .free { fill: #28435c } .sibling { fill: #4d4d4d }
.idle { fill: #1a1a1a; stroke: #888888 } .barred { fill: #5e5e5e } .off { fill: #262626; stroke: #444444 }
.grey { fill: #eeeeee }
}
"""
SMALL_PATTERN = 4
"""Patterns below this size have wider lines."""


class Style:
    """How the CPUs of one picture look."""

    def __init__(self, svg: Any) -> None:
        self._svg = svg
        self._patterns: dict[str, Any] = {}

    def fill(self, use: Use) -> dict[str, Any]:
        """Return the attributes of a CPU's rectangle."""
        if use.rank is None:
            return {"class_": use.state}
        colour = COLOURS[use.rank % len(COLOURS)]
        if use.helper:
            return {"class_": "helper", "stroke": colour, "stroke_width": 1.5}
        return {"fill": colour}

    def letter_style(self, use: Use) -> str:
        """Return the classes of the letters on a CPU's rectangle."""
        if use.rank is None:
            return "on grey"
        return "light" if COLOURS[use.rank % len(COLOURS)] in DARK_COLOURS and not use.helper else "on"

    def hatching(self, rank: int) -> Any:
        """Return the pattern at the edge of the helper CPUs of a rank."""
        return self._pattern(f"helper{rank}", COLOURS[rank % len(COLOURS)], 3)

    def stripes(self) -> Any:
        """Return the pattern over CPUs that may not be used."""
        return self._pattern("barred", "#777777", 6)

    def _pattern(self, name: str, colour: str, size: int) -> Any:
        if name not in self._patterns:
            svg = self._svg
            turned = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)", "id": name}
            pattern = svg.Pattern(size, size, **turned)
            pattern.append(svg.Rectangle(0, 0, 1.5 if size < SMALL_PATTERN else 1, size, fill=colour))
            self._patterns[name] = pattern
        return self._patterns[name]
