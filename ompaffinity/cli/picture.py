"""The picture of a plan: the machine as lstopo draws it, each rank in its colour. Drawn by drawsvg (the extra [svg]).

Boxes in boxes: packages, NUMA nodes, L3 caches, cores, CPUs. The colours are Okabe and Ito's, which the colour-blind
tell apart, and each rank's number stands on its cores besides; helper CPUs are hatched, and what is left out is grey,
with the reason as its tooltip. A machine of more than `MAX_CPUS` is folded: one box for the like cores of a cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from ompaffinity.placement.model import Plan
    from ompaffinity.topology.model import LogicalCPUInfo, MemoryNodeInfo, Topology

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999933")
DARK_COLOURS = ("#0072b2", "#d55e00")
"""White letters are read better on these."""
MAX_CPUS, MOST_DISTANCES = 512, 8
CELL, GAP, HEAD, LETTER = 22, 4, 16, 6.2
WIDE, MOST_LETTERS = 2.0, 24
STYLE = """
.ground { fill: #ffffff } .word { fill: #222222; font: 11px sans-serif } .small { font-size: 9px }
.package { fill: #f2f2f2; stroke: #888888 } .node { fill: #ffffff; stroke: #666666 }
.l3 { fill: #f7f7f7; stroke: #aaaaaa }
.core { fill: none; stroke: #bbbbbb } .out { fill: #d9d9d9 } .off { fill: #f2f2f2; stroke: #cccccc }
.on { fill: #111111; font: 9px sans-serif } .light { fill: #ffffff; font: 9px sans-serif }
@media (prefers-color-scheme: dark) {
.ground { fill: #1a1a1a } .word { fill: #eeeeee } .package { fill: #262626; stroke: #777777 }
.node { fill: #1a1a1a; stroke: #999999 } .l3 { fill: #222222; stroke: #666666 } .core { stroke: #555555 }
.out { fill: #4d4d4d } .off { fill: #262626; stroke: #444444 } .grey { fill: #eeeeee }
}
"""


class Box(NamedTuple):
    """Something of a size, and what draws it at a place: called with (drawing, x, y)."""

    width: float
    height: float
    draw: Callable[[Any, float, float], None]


class Use(NamedTuple):
    """What a CPU is used for: by a rank (None: by none), as a helper or not, in words, and by which other ranks."""

    rank: int | None
    helper: bool
    words: str
    others: tuple[int, ...] = ()


def write_picture(topology: Topology, plan: Plan, path: str) -> None:
    """Draw a plan on its machine.

    Raises:
        RequestError: drawsvg is not installed, or the file cannot be written.
    """
    try:
        import drawsvg as svg
    except ImportError:
        raise RequestError("--svg needs drawsvg; install it with: pip install 'ompaffinity[svg]'") from None
    painter = _Painter(svg, topology, plan)
    machine, legend = painter.machine(), painter.legend()
    title = f"{topology.machine} ({topology.architecture})"
    width = max(machine.width, legend.width, LETTER * len(title)) + 2 * GAP
    height = HEAD + machine.height + legend.height + 4 * GAP
    drawing = svg.Drawing(round(width, 1), round(height, 1))
    drawing.append_css(STYLE)
    for pattern in painter.patterns:
        drawing.append_def(pattern)
    drawing.append(svg.Rectangle(0, 0, round(width, 1), round(height, 1), class_="ground"))
    drawing.append(svg.Text(title, 11, GAP, HEAD - 3, class_="word", font_weight="bold"))
    machine.draw(drawing, GAP, HEAD + GAP)
    legend.draw(drawing, GAP, HEAD + machine.height + 3 * GAP)
    try:
        drawing.save_svg(path)
    except OSError as error:
        raise RequestError(f"--svg {path} cannot be written: {error.strerror}") from None


def uses(plan: Plan) -> dict[int, Use]:
    """Return what each CPU is used for."""
    found: dict[int, Use] = {}
    for group in plan.left_out:
        found.update(dict.fromkeys(group.cpus, Use(None, False, f"{group.reason}: {group.detail}")))
    for placement in plan.ranks:
        mine = [(cpu, True, f"rank {placement.rank}, helper threads") for cpu in placement.helper_cpus]
        mine += [(cpu, False, f"rank {placement.rank}, thread {thread}") for thread, cpu in enumerate(placement.cpus)]
        for cpu, helper, words in mine:
            first = found.get(cpu)
            if first is None or first.rank is None:
                found[cpu] = Use(placement.rank, helper, words)
            else:
                others = (*first.others, placement.rank)
                found[cpu] = Use(first.rank, first.helper and helper, f"{first.words}; {words}", others)
    return found


class _Painter:
    """Makes the boxes of one picture."""

    def __init__(self, svg: Any, topology: Topology, plan: Plan) -> None:
        self._svg, self._topology, self._plan = svg, topology, plan
        self._uses = uses(plan)
        self._numbered = len(plan.ranks) > len(COLOURS) and len(topology.cpus) <= MAX_CPUS
        self._folded = len(topology.cpus) > MAX_CPUS
        self.patterns: list[Any] = []
        self._hatched: dict[int, Any] = {}

    def machine(self) -> Box:
        boxes = [self._level(self._topology.cpus, self._levels())]
        bare = [node for node in self._topology.nodes if not node.cpus]
        if bare:
            memory = [self._node(self._word(""), node) for node in bare]
            boxes.append(_flow(memory))
        return _flow(boxes)

    def legend(self) -> Box:
        rows = []
        for placement in self._plan.ranks:
            what = "not bound"
            if placement.bound:
                helpers = f", helpers {format_id_list(placement.helper_cpus)}" if placement.helper_cpus else ""
                count = len(placement.cpus)
                what = f"{count} {'thread' if count == 1 else 'threads'}{helpers}"
            memory = f", memory {placement.memory_policy} {format_id_list(placement.nodes)}" if placement.nodes else ""
            gpu = f", GPU {placement.gpu}" if placement.gpu is not None else ""
            mark = self._cell(str(placement.rank), Use(placement.rank, False, ""), CELL)
            rows.append(_beside([mark, self._word(f"rank {placement.rank}{gpu}: {what}{memory}")]))
        for group in self._plan.left_out:
            use = Use(None, False, group.detail)
            words = f"{group.reason}: {len(group.cpus)} {'CPU' if len(group.cpus) == 1 else 'CPUs'}"
            rows.append(_beside([self._cell("", use, CELL), self._word(words)]))
        return _flow(rows, wide=4.0) if rows else self._word("")

    def _levels(self) -> tuple[str, ...]:
        """Return the levels above the caches, the outermost first: a node goes around what it has several of."""
        outer = ["drawer", "book", "package"]
        for place, level in enumerate(outer):
            groups: dict[int, set[int]] = {}
            for cpu in self._topology.cpus:
                groups.setdefault(cpu.numa_node, set()).add(getattr(cpu, level))
            if any(len(found) > 1 for node, found in groups.items() if node != UNKNOWN):
                return (*outer[:place], "numa_node", *outer[place:])
        return (*outer, "numa_node")

    def _level(self, members: Sequence[LogicalCPUInfo], levels: tuple[str, ...]) -> Box:
        """Return the groups of the outermost level, the others inside of it; a level that is not told is left out."""
        if not levels:
            return self._caches(members)
        boxes = []
        for number, of_group in _groups(members, lambda cpu: getattr(cpu, levels[0])):
            inside = self._level(of_group, levels[1:])
            if number != UNKNOWN and levels[0] == "numa_node":
                inside = self._node(inside, self._topology.node(number))
            elif number != UNKNOWN:
                inside = self._framed(inside, f"{levels[0]} {number}", "package")
            boxes.append(inside)
        return _flow(boxes)

    def _node(self, inside: Box, node: MemoryNodeInfo) -> Box:
        """Return a node's frame: with its distances where there are few, and as its tooltip."""
        if node.distances and 1 < len(node.distances) <= MOST_DISTANCES:
            far = self._word(f"distances {' '.join(map(str, node.distances.values()))}", small=True)
            inside = _rows([far, inside], 1, 0)
        return self._framed(inside, _node_words(node), "node", _distances(node))

    def _caches(self, members: Sequence[LogicalCPUInfo]) -> Box:
        boxes = []
        for number, of_cache in _groups(members, lambda cpu: cpu.l3):
            inside = self._folded_cores(of_cache) if self._folded else self._cores(of_cache)
            boxes.append(inside if number == UNKNOWN else self._framed(inside, "L3", "l3"))
        return _flow(boxes)

    def _cores(self, members: Sequence[LogicalCPUInfo]) -> Box:
        def core(cpu: LogicalCPUInfo) -> int:
            return cpu.physical_core if cpu.physical_core != UNKNOWN else UNKNOWN - 1 - cpu.id

        boxes = []
        for _, siblings in _groups(members, core):
            cells = [self._cell(str(cpu.id), self._use(cpu), CELL, off=not cpu.online) for cpu in siblings]
            boxes.append(self._outlined(_rows(cells, min(len(cells), 4), 1), "core"))
        return _flow(boxes)

    def _folded_cores(self, members: Sequence[LogicalCPUInfo]) -> Box:
        alike: dict[Use, list[int]] = {}
        for cpu in members:
            alike.setdefault(self._use_of_many(cpu), []).append(cpu.id)
        boxes = []
        for use, cpus in alike.items():
            words = format_id_list(cpus)
            if len(words) > MOST_LETTERS:
                words = f"{len(cpus)} CPUs, {cpus[0]} to {cpus[-1]}"
            label = words if use.rank is None else f"r{use.rank}: {words}"
            boxes.append(self._cell(label, use, LETTER * len(label) + 2 * GAP))
        return _rows(boxes, 1, 2)

    def _use(self, cpu: LogicalCPUInfo) -> Use:
        return self._uses.get(cpu.id, Use(None, False, "not used"))

    def _use_of_many(self, cpu: LogicalCPUInfo) -> Use:
        use = self._use(cpu)
        words = f"rank {use.rank}{', helpers' * use.helper}"
        return use if use.rank is None else Use(use.rank, use.helper, words, use.others)

    def _cell(self, label: str, use: Use, width: float, *, off: bool = False) -> Box:
        svg = self._svg

        def draw(drawing: Any, x: float, y: float) -> None:
            if use.rank is None:
                shape = svg.Rectangle(round(x, 1), round(y, 1), width, CELL, class_="off" if off else "out")
            else:
                fill = self._hatching(use.rank) if use.helper else COLOURS[use.rank % len(COLOURS)]
                shape = svg.Rectangle(round(x, 1), round(y, 1), width, CELL, fill=fill)
            shape.append_title(f"CPU {label}: {use.words}" if use.words else label)
            drawing.append(shape)
            style = "on" if use.rank is None or use.helper or not _is_dark(use.rank) else "light"
            style += " grey" if use.rank is None else ""
            # More ranks than colours: each cell says whose it is.
            lines = [label]
            if use.rank is not None and (self._numbered or use.others):
                lines.append(
                    f"r{','.join(map(str, (use.rank, *use.others)[:2]))}{'...' if len(use.others) > 1 else ''}"
                )
            for place, line in enumerate(lines):
                down = y + CELL / 2 + 3 if len(lines) == 1 else y + 9 + 10 * place
                middle = (round(x + width / 2, 1), round(down, 1))
                drawing.append(svg.Text(line, 9, *middle, text_anchor="middle", class_=style, pointer_events="none"))

        return Box(width, CELL, draw)

    def _hatching(self, rank: int) -> Any:
        if rank not in self._hatched:
            svg = self._svg
            pattern = svg.Pattern(
                6, 6, patternUnits="userSpaceOnUse", patternTransform="rotate(45)", id=f"helper{rank}"
            )
            pattern.append(svg.Rectangle(0, 0, 6, 6, fill="#ffffff"))
            pattern.append(svg.Rectangle(0, 0, 1.8, 6, fill=COLOURS[rank % len(COLOURS)]))
            self.patterns.append(pattern)
            self._hatched[rank] = pattern
        return self._hatched[rank]

    def _word(self, text: str, *, small: bool = False) -> Box:
        style = "word small" if small else "word"

        def draw(drawing: Any, x: float, y: float) -> None:
            if text:
                drawing.append(self._svg.Text(text, 11, round(x, 1), round(y + HEAD - 4, 1), class_=style))

        return Box(LETTER * len(text), HEAD if text else 0, draw)

    def _framed(self, inside: Box, title: str, style: str, tooltip: str = "") -> Box:
        head = HEAD if title else GAP
        width = max(inside.width, LETTER * len(title)) + 2 * GAP
        height = inside.height + head + GAP

        def draw(drawing: Any, x: float, y: float) -> None:
            frame = self._svg.Rectangle(round(x, 1), round(y, 1), round(width, 1), round(height, 1), rx=3, class_=style)
            if tooltip:
                frame.append_title(tooltip)
            drawing.append(frame)
            if title:
                drawing.append(self._svg.Text(title, 11, round(x + GAP, 1), round(y + HEAD - 4, 1), class_="word"))
            inside.draw(drawing, x + GAP, y + head)

        return Box(width, height, draw)

    def _outlined(self, inside: Box, style: str) -> Box:
        def draw(drawing: Any, x: float, y: float) -> None:
            size = (round(inside.width + 2, 1), round(inside.height + 2, 1))
            drawing.append(self._svg.Rectangle(round(x, 1), round(y, 1), *size, rx=2, class_=style))
            inside.draw(drawing, x + 1, y + 1)

        return Box(inside.width + 2, inside.height + 2, draw)


def _is_dark(rank: int) -> bool:
    return COLOURS[rank % len(COLOURS)] in DARK_COLOURS


def _node_words(node: MemoryNodeInfo) -> str:
    size = "" if node.total_memory <= 0 else f", {node.total_memory / 2**30:.0f} GiB"
    none = ", no memory" if node.has_memory is False else ""
    return f"node {node.id}{size}{none}"


def _distances(node: MemoryNodeInfo) -> str:
    if not node.distances:
        return f"node {node.id}: distances unknown"
    said = ", ".join(f"{distance} to node {other}" for other, distance in node.distances.items())
    return f"node {node.id}: {said}"


def _groups(
    cpus: Iterable[LogicalCPUInfo], key: Callable[[LogicalCPUInfo], int]
) -> list[tuple[int, list[LogicalCPUInfo]]]:
    """Return (number, CPUs) of each group, by number, the unknown one last."""
    found: dict[int, list[LogicalCPUInfo]] = {}
    for cpu in cpus:
        found.setdefault(key(cpu), []).append(cpu)
    return sorted(found.items(), key=lambda item: (item[0] == UNKNOWN, item[1][0].id))


def _beside(boxes: Sequence[Box]) -> Box:
    return _rows(boxes, len(boxes), GAP)


def _flow(boxes: Sequence[Box], wide: float = WIDE) -> Box:
    """Arrange boxes in rows so that the whole is about `wide` times as wide as it is high."""
    candidates = (_rows(boxes, columns, GAP) for columns in range(1, len(boxes) + 1))
    return min(candidates, key=lambda box: abs(box.width / max(box.height, 1) - wide))


def _rows(boxes: Sequence[Box], columns: int, gap: float) -> Box:
    """Arrange boxes in so many columns, each as wide as its widest box."""
    rows = [boxes[start : start + columns] for start in range(0, len(boxes), columns)]
    widths = [max(row[place].width for row in rows if place < len(row)) for place in range(len(rows[0]))]
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
