"""The picture of a plan: the machine in the style of lstopo, one colour per rank, drawn with drawsvg (extra [svg]).

The boxes are nested: packages, NUMA nodes, L3 caches, cores, CPUs. The colours are those of Okabe and Ito, which
colour-blind readers can distinguish; with more ranks than colours each CPU shows the number of its rank. Helper CPUs
are hatched. CPUs left out are grey, with the reason as tooltip. Above `MAX_CPUS` CPUs, one box represents all CPUs of a
cache with the same use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.errors import RequestError
from ompaffinity.files import write_whole
from ompaffinity.ids import format_id_list
from ompaffinity.interpreter import install_command
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from ompaffinity.placement.model import Plan
    from ompaffinity.topology.model import LogicalCPUInfo, MemoryNodeInfo, Topology

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999933")
DARK_COLOURS = ("#0072b2", "#d55e00")
"""The colours that need white letters."""
MAX_CPUS, MAX_DISTANCES = 512, 8
CELL, GAP, HEAD, LETTER = 22, 4, 16, 6.2
WIDE, MAX_LETTERS = 2.0, 24
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
    """A size in pixels, and the function that draws it: called with (drawing, x, y)."""

    width: float
    height: float
    draw: Callable[[Any, float, float], None]


class Use(NamedTuple):
    """The use of a CPU: its rank (None: left out), whether as helper CPU, a description, and other ranks on it."""

    rank: int | None
    helper: bool
    text: str
    others: tuple[int, ...] = ()


def write_picture(topology: Topology, plan: Plan, path: str) -> None:
    """Draw a plan on its machine.

    Raises:
        RequestError: drawsvg is not installed, or the file cannot be written.
    """
    try:
        import drawsvg as svg
    except ImportError:
        raise RequestError(f"--svg requires drawsvg; install it with: {install_command('ompaffinity[svg]')}") from None
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
        write_whole(path, drawing.as_svg().encode())
    except OSError as error:
        raise RequestError(
            f"--svg {path} cannot be written ({error.strerror}); name a file in a writable folder"
        ) from None


def uses(plan: Plan) -> dict[int, Use]:
    """Return {cpu: its use} of a plan."""
    use_of: dict[int, Use] = {}
    for group in plan.left_out:
        use_of.update(dict.fromkeys(group.cpus, Use(None, False, f"{group.reason}: {group.detail}")))
    for placement in plan.ranks:
        own = [(cpu, True, f"rank {placement.rank}, helper threads") for cpu in placement.helper_cpus]
        own += [(cpu, False, f"rank {placement.rank}, thread {thread}") for thread, cpu in enumerate(placement.cpus)]
        for cpu, helper, text in own:
            first = use_of.get(cpu)
            if first is None or first.rank is None:
                use_of[cpu] = Use(placement.rank, helper, text)
            else:
                others = (*first.others, placement.rank)
                use_of[cpu] = Use(first.rank, first.helper and helper, f"{first.text}; {text}", others)
    return use_of


class _Painter:
    """Creates the boxes of one picture."""

    def __init__(self, svg: Any, topology: Topology, plan: Plan) -> None:
        self._svg, self._topology, self._plan = svg, topology, plan
        self._uses = uses(plan)
        self._numbered = len(plan.ranks) > len(COLOURS) and len(topology.cpus) <= MAX_CPUS
        self._folded = len(topology.cpus) > MAX_CPUS
        self.patterns: list[Any] = []
        self._hatched: dict[int, Any] = {}

    def machine(self) -> Box:
        boxes = [self._level(self._topology.cpus, self._levels())]
        without_cpus = [node for node in self._topology.nodes if not node.cpus]
        if without_cpus:
            boxes.append(_flow([self._node(self._line(""), node) for node in without_cpus]))
        return _flow(boxes)

    def legend(self) -> Box:
        rows = []
        for placement in self._plan.ranks:
            threads = "not bound"
            if placement.bound:
                helpers = f", helpers {format_id_list(placement.helper_cpus)}" if placement.helper_cpus else ""
                count = len(placement.cpus)
                threads = f"{count} {'thread' if count == 1 else 'threads'}{helpers}"
            memory = f", memory {placement.memory_policy} {format_id_list(placement.nodes)}" if placement.nodes else ""
            gpu = f", GPU {placement.gpu}" if placement.gpu is not None else ""
            mark = self._cell(str(placement.rank), Use(placement.rank, False, ""), CELL)
            rows.append(_beside([mark, self._line(f"rank {placement.rank}{gpu}: {threads}{memory}")]))
        for group in self._plan.left_out:
            use = Use(None, False, group.detail)
            text = f"{group.reason}: {len(group.cpus)} {'CPU' if len(group.cpus) == 1 else 'CPUs'}"
            rows.append(_beside([self._cell("", use, CELL), self._line(text)]))
        return _flow(rows, wide=4.0) if rows else self._line("")

    def _levels(self) -> tuple[str, ...]:
        """Return the levels above the caches, outermost first: nodes come before a level that they have several of."""
        outer = ["drawer", "book", "package"]
        for index, level in enumerate(outer):
            groups: dict[int, set[int]] = {}
            for cpu in self._topology.cpus:
                groups.setdefault(cpu.numa_node, set()).add(getattr(cpu, level))
            if any(len(numbers) > 1 for node, numbers in groups.items() if node != UNKNOWN):
                return (*outer[:index], "numa_node", *outer[index:])
        return (*outer, "numa_node")

    def _level(self, members: Sequence[LogicalCPUInfo], levels: tuple[str, ...]) -> Box:
        """Return the groups of the outermost level with the other levels inside; unknown levels get no frame."""
        if not levels:
            return self._caches(members)
        boxes = []
        for number, group in _groups(members, lambda cpu: getattr(cpu, levels[0])):
            inside = self._level(group, levels[1:])
            if number != UNKNOWN and levels[0] == "numa_node":
                inside = self._node(inside, self._topology.node(number))
            elif number != UNKNOWN:
                inside = self._framed(inside, f"{levels[0]} {number}", "package")
            boxes.append(inside)
        return _flow(boxes)

    def _node(self, inside: Box, node: MemoryNodeInfo) -> Box:
        """Return the frame of a node, with its distances as tooltip, and as text if there are at most MAX_DISTANCES."""
        if node.distances and 1 < len(node.distances) <= MAX_DISTANCES:
            distances = self._line(f"distances {' '.join(map(str, node.distances.values()))}", small=True)
            inside = _rows([distances, inside], 1, 0)
        return self._framed(inside, _node_title(node), "node", _distances(node))

    def _caches(self, members: Sequence[LogicalCPUInfo]) -> Box:
        boxes = []
        for number, group in _groups(members, lambda cpu: cpu.l3):
            inside = self._folded_cores(group) if self._folded else self._cores(group)
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
        by_use: dict[Use, list[int]] = {}
        for cpu in members:
            by_use.setdefault(self._folded_use(cpu), []).append(cpu.id)
        boxes = []
        for use, cpus in by_use.items():
            text = format_id_list(cpus)
            if len(text) > MAX_LETTERS:
                text = f"{len(cpus)} CPUs, {cpus[0]} to {cpus[-1]}"
            label = text if use.rank is None else f"r{use.rank}: {text}"
            boxes.append(self._cell(label, use, LETTER * len(label) + 2 * GAP))
        return _rows(boxes, 1, 2)

    def _use(self, cpu: LogicalCPUInfo) -> Use:
        return self._uses.get(cpu.id, Use(None, False, "not used"))

    def _folded_use(self, cpu: LogicalCPUInfo) -> Use:
        """Return the use of a CPU without its thread number, equal for all CPUs of a box."""
        use = self._use(cpu)
        text = f"rank {use.rank}{', helpers' * use.helper}"
        return use if use.rank is None else Use(use.rank, use.helper, text, use.others)

    def _cell(self, label: str, use: Use, width: float, *, off: bool = False) -> Box:
        svg = self._svg

        def draw(drawing: Any, x: float, y: float) -> None:
            if use.rank is None:
                shape = svg.Rectangle(round(x, 1), round(y, 1), width, CELL, class_="off" if off else "out")
            else:
                fill = self._hatching(use.rank) if use.helper else COLOURS[use.rank % len(COLOURS)]
                shape = svg.Rectangle(round(x, 1), round(y, 1), width, CELL, fill=fill)
            shape.append_title(f"CPU {label}: {use.text}" if use.text else label)
            drawing.append(shape)
            style = "on" if use.rank is None or use.helper or not _is_dark(use.rank) else "light"
            style += " grey" if use.rank is None else ""
            # With more ranks than colours each cell shows the number of its rank.
            lines = [label]
            if use.rank is not None and (self._numbered or use.others):
                lines.append(
                    f"r{','.join(map(str, (use.rank, *use.others)[:2]))}{'...' if len(use.others) > 1 else ''}"
                )
            for index, line in enumerate(lines):
                down = y + CELL / 2 + 3 if len(lines) == 1 else y + 9 + 10 * index
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

    def _line(self, text: str, *, small: bool = False) -> Box:
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


def _node_title(node: MemoryNodeInfo) -> str:
    size = "" if node.total_memory <= 0 else f", {node.total_memory / 2**30:.0f} GiB"
    none = ", no memory" if node.has_memory is False else ""
    return f"node {node.id}{size}{none}"


def _distances(node: MemoryNodeInfo) -> str:
    if not node.distances:
        return f"node {node.id}: distances unknown"
    distances = ", ".join(f"{distance} to node {other}" for other, distance in node.distances.items())
    return f"node {node.id}: {distances}"


def _groups(
    cpus: Iterable[LogicalCPUInfo], key: Callable[[LogicalCPUInfo], int]
) -> list[tuple[int, list[LogicalCPUInfo]]]:
    """Return (number, CPUs) of each group, by first CPU, the unknown one last."""
    groups: dict[int, list[LogicalCPUInfo]] = {}
    for cpu in cpus:
        groups.setdefault(key(cpu), []).append(cpu)
    return sorted(groups.items(), key=lambda item: (item[0] == UNKNOWN, item[1][0].id))


def _beside(boxes: Sequence[Box]) -> Box:
    return _rows(boxes, len(boxes), GAP)


def _flow(boxes: Sequence[Box], wide: float = WIDE) -> Box:
    """Arrange boxes in rows so that the result is about `wide` times as wide as high."""
    candidates = (_rows(boxes, columns, GAP) for columns in range(1, len(boxes) + 1))
    return min(candidates, key=lambda box: abs(box.width / max(box.height, 1) - wide))


def _rows(boxes: Sequence[Box], columns: int, gap: float) -> Box:
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
