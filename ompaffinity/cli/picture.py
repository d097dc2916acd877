"""The picture of a machine and its plan in the style of lstopo, drawn with drawsvg (the extra [svg]).

The boxes are nested: packages, NUMA nodes, L3 caches, kinds of cores, cores, CPUs. Each rank has a colour of Okabe and
Ito's palette, which colour-blind readers can distinguish; with more ranks than colours each CPU shows the number of its
rank. Helper CPUs have a hatched edge, CPUs that are left out a pattern for their reason. Above `MAX_CPUS` CPUs, one box
represents all CPUs of a cache with the same use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.cli.boxes import GAP, Box, beside, flow, groups_of, rows_of
from ompaffinity.cli.picture_style import COLOURS, STYLE, Style
from ompaffinity.cli.uses import BARRED, Use, memory_in_words, rank_label, uses
from ompaffinity.errors import RequestError
from ompaffinity.files import write_whole
from ompaffinity.ids import format_folded_id_list
from ompaffinity.interpreter import install_command
from ompaffinity.messages import counted
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from ompaffinity.placement.model import Plan, RankPlacement
    from ompaffinity.topology.model import LogicalCPUInfo, MemoryNodeInfo, Topology

MAX_CPUS, MAX_DISTANCES = 256, 8
CELL, TALL_CELL, HEAD, LETTER, SMALL_LETTER, EDGE = 22, 32, 16, 6.2, 5.2, 5


def write_picture(topology: Topology, plan: Plan | None, path: str) -> None:
    """Draw a machine, with a plan on it if there is one; a name that ends in ``.png`` gets a PNG picture.

    Raises:
        RequestError: drawsvg is not installed (for PNG: resvg-py), or the file cannot be written.
    """
    try:
        import drawsvg as svg
    except ImportError:
        raise RequestError(f"--svg requires drawsvg; install it with: {install_command('ompaffinity[svg]')}") from None
    painter = _Painter(svg, topology, plan)
    machine, legend = painter.machine(), painter.legend()
    title = _title(topology)
    width = max(machine.width, legend.width, LETTER * len(title)) + 2 * GAP
    height = HEAD + machine.height + legend.height + 4 * GAP
    drawing = svg.Drawing(round(width, 1), round(height, 1))
    drawing.append_css(STYLE)
    drawing.append(svg.Rectangle(0, 0, round(width, 1), round(height, 1), class_="ground"))
    drawing.append(svg.Text(title, 11, GAP, HEAD - 3, class_="word", font_weight="bold"))
    machine.draw(drawing, GAP, HEAD + GAP)
    legend.draw(drawing, GAP, HEAD + machine.height + 3 * GAP)
    content = drawing.as_svg().encode()
    if path.lower().endswith(".png"):
        from ompaffinity.cli.png import png_of

        content = png_of(drawing.as_svg())
    try:
        write_whole(path, content)
    except OSError as error:
        raise RequestError(
            f"--svg {path} cannot be written ({error.strerror}); name a file in a writable folder"
        ) from None


class _Painter:
    """Creates the boxes of one picture."""

    def __init__(self, svg: Any, topology: Topology, plan: Plan | None) -> None:
        self._svg, self._topology, self._plan = svg, topology, plan
        self._style = Style(svg)
        self._ranks: tuple[RankPlacement, ...] = () if plan is None else plan.ranks
        self._uses = uses(topology, plan)
        self._folded = len(topology.cpus) > MAX_CPUS
        shared = any(use.others for use in self._uses.values())
        self._numbered = (len(self._ranks) > len(COLOURS) or shared) and not self._folded
        self._height = TALL_CELL if self._numbered else CELL
        self._width = max(CELL, SMALL_LETTER * self._longest_label() + 6)

    def _longest_label(self) -> int:
        if self._folded:
            return max(len(text) for members in self._folds() for text in self._labels(members).values())
        labels = [str(cpu.id) for cpu in self._topology.cpus]
        return max(map(len, [*labels, *map(rank_label, self._uses.values() if self._numbered else ())]))

    def machine(self) -> Box:
        boxes = [self._level(self._topology.cpus, self._levels())]
        without_cpus = [node for node in self._topology.nodes if not node.cpus]
        if without_cpus:
            boxes.append(flow([self._node(self._line(""), node) for node in without_cpus]))
        return flow(boxes)

    def legend(self) -> Box:
        rows = []
        for placement in self._ranks:
            mark = self._cell(str(placement.rank), Use(placement.rank, False, ""), CELL)
            rows.append(self._row(mark, _rank_line(placement)))
        helpers = [placement.rank for placement in self._ranks if placement.helper_cpus]
        if helpers:
            mark = self._cell("", Use(helpers[0], True, "helper CPUs"), CELL)
            rows.append(self._row(mark, "helper CPUs: no OpenMP threads, for the other threads of the rank"))
        if self._plan is None:
            shown = {use.text: use for use in self._uses.values()}
            rows += [self._row(self._cell("", use, CELL), text) for text, use in shown.items()]
        for group in () if self._plan is None else self._plan.left_out:
            use = self._uses[group.cpus[0]]
            text = f"{group.reason}: CPU {format_folded_id_list(group.cpus)}"
            if len(text) > MAX_LEGEND_LETTERS:
                text = f"{group.reason}: {counted(len(group.cpus), 'CPU')}"
            rows.append(self._row(self._cell("", use, CELL), text))
        return flow(rows, wide=4.0) if rows else self._line("")

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
        for number, group in groups_of(members, lambda cpu: getattr(cpu, levels[0])):
            inside = self._level(group, levels[1:])
            if number != UNKNOWN and levels[0] == "numa_node":
                inside = self._node(inside, self._topology.node(number))
            elif number != UNKNOWN:
                inside = self._framed(inside, f"{levels[0]} {number}", "package")
            boxes.append(inside)
        return flow(boxes)

    def _node(self, inside: Box, node: MemoryNodeInfo) -> Box:
        """Return the frame of a node with its GPUs, its distances as tooltip, and as text if there are few."""
        if node.distances and 1 < len(node.distances) <= MAX_DISTANCES:
            distances = self._line(f"distances {' '.join(map(str, node.distances.values()))}", small=True)
            inside = rows_of([distances, inside], 1, 0)
        gpus = [self._gpu(rank) for rank in self._ranks if rank.gpu is not None and rank.nodes[:1] == (node.id,)]
        if gpus:
            inside = rows_of([inside, flow(gpus)], 1, GAP)
        return self._framed(inside, _node_title(node), "node", _distances(node))

    def _gpu(self, placement: RankPlacement) -> Box:
        mark = self._cell(str(placement.rank), Use(placement.rank, False, ""), CELL)
        return self._framed(self._row(mark, f"GPU {placement.gpu}"), "", "gpu")

    def _caches(self, members: Sequence[LogicalCPUInfo]) -> Box:
        boxes = []
        for number, group in groups_of(members, lambda cpu: cpu.l3):
            inside = self._kinds(group)
            boxes.append(inside if number == UNKNOWN else self._framed(inside, self._l3_title(number), "l3"))
        return flow(boxes)

    def _l3_title(self, number: int) -> str:
        sizes = self._topology.l3_bytes
        size = sizes[number] if number < len(sizes) else UNKNOWN
        return "L3" if size == UNKNOWN else f"L3, {round(size / 2**20, 2):g} MiB"

    def _kinds(self, members: Sequence[LogicalCPUInfo]) -> Box:
        """Return the cores, those of each kind below its name on a chip with several kinds."""
        kinds: dict[str | None, list[LogicalCPUInfo]] = {}
        for cpu in members:
            kinds.setdefault(cpu.kind, []).append(cpu)
        boxes = []
        for kind, group in kinds.items():
            inside = self._folded_cores(group) if self._folded else self._cores(group)
            boxes.append(inside if kind is None else rows_of([self._line(kind, small=True), inside], 1, 0))
        return flow(boxes)

    def _cores(self, members: Sequence[LogicalCPUInfo]) -> Box:
        def core(cpu: LogicalCPUInfo) -> int:
            return cpu.physical_core if cpu.physical_core != UNKNOWN else UNKNOWN - 1 - cpu.id

        boxes = []
        for _, siblings in groups_of(members, core):
            cells = [self._cell(str(cpu.id), self._uses[cpu.id], self._width, of_cpu=True) for cpu in siblings]
            boxes.append(self._outlined(rows_of(cells, min(len(cells), 4), 1), "core"))
        return flow(boxes)

    def _folds(self) -> Iterable[list[LogicalCPUInfo]]:
        """Return the CPUs of each box that is folded: those of one cache."""
        folds: dict[tuple[int, int, int], list[LogicalCPUInfo]] = {}
        for cpu in self._topology.cpus:
            folds.setdefault((cpu.package, cpu.numa_node, cpu.l3), []).append(cpu)
        return folds.values()

    def _labels(self, members: Sequence[LogicalCPUInfo]) -> dict[Use, str]:
        """Return {use: the CPUs with it} of a folded box."""
        by_use: dict[Use, list[int]] = {}
        for cpu in members:
            by_use.setdefault(self._folded_use(cpu), []).append(cpu.id)
        labels = {}
        for use, cpus in by_use.items():
            text = format_folded_id_list(cpus)
            if len(text) > MAX_LETTERS:
                text = f"{len(cpus)} CPUs, {cpus[0]} to {cpus[-1]}"
            labels[use] = text if use.rank is None else f"{rank_label(use)}: {text}"
        return labels

    def _folded_cores(self, members: Sequence[LogicalCPUInfo]) -> Box:
        labels = self._labels(members)
        return rows_of([self._cell(label, use, self._width, of_cpu=True) for use, label in labels.items()], 1, 2)

    def _folded_use(self, cpu: LogicalCPUInfo) -> Use:
        """Return the use of a CPU without its thread number, equal for all CPUs of a box."""
        use = self._uses[cpu.id]
        text = f"rank {use.rank}{', helpers' * use.helper}"
        return use if use.rank is None else Use(use.rank, use.helper, text, use.others)

    def _cell(self, label: str, use: Use, width: float, *, of_cpu: bool = False) -> Box:
        # With more ranks than colours each cell shows the number of its rank, too.
        height = self._height if of_cpu else CELL
        lines = [label, rank_label(use)] if height == TALL_CELL and use.rank is not None else [label]

        def draw(drawing: Any, x: float, y: float) -> None:
            place = (round(x, 1), round(y, 1), round(width, 1), height)
            frame = self._svg.Rectangle(*place, **self._style.fill(use))
            frame.append_title(f"CPU {label}: {use.text}" if use.text else label)
            drawing.append(frame)
            if use.helper and use.rank is not None:
                edge = (round(x + 1, 1), round(y + height - EDGE - 1, 1), round(width - 2, 1), EDGE)
                drawing.append(self._svg.Rectangle(*edge, fill=self._style.hatching(use.rank), pointer_events="none"))
            elif use.rank is None and use.state == BARRED:
                drawing.append(self._svg.Rectangle(*place, fill=self._style.stripes(), pointer_events="none"))
            for index, line in enumerate(lines):
                middle_line = y + (height - EDGE * use.helper) / 2 + 3
                down = middle_line + 5.5 * (2 * index + 1 - len(lines))
                middle = (round(x + width / 2, 1), round(down, 1))
                style = self._style.letter_style(use)
                drawing.append(
                    self._svg.Text(line, 9, *middle, text_anchor="middle", class_=style, pointer_events="none")
                )

        return Box(width, height, draw)

    def _row(self, mark: Box, text: str) -> Box:
        """Return a mark with a text beside it."""
        line = self._line(text)

        def draw(drawing: Any, x: float, y: float) -> None:
            line.draw(drawing, x, y + (CELL - HEAD) / 2)

        return beside([mark, Box(line.width, CELL, draw)])

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


MAX_LETTERS, MAX_LEGEND_LETTERS = 24, 60


def _title(topology: Topology) -> str:
    """Return the name of a machine, its architecture and its memory."""
    memory = sum(max(node.total_memory, 0) for node in topology.nodes) or max(topology.total_memory, 0)
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    return f"{topology.machine} ({topology.architecture}){size}"


def _rank_line(placement: RankPlacement) -> str:
    """Return the row of a rank in the legend: what its row of the table has."""
    gpu = f", GPU {placement.gpu}" if placement.gpu is not None else ""
    if not placement.bound:
        return f"rank {placement.rank}{gpu}: not bound"
    cpus = format_folded_id_list(placement.cpus)
    threads = f"{counted(len(placement.cpus), 'thread')}" + (f" on CPU {cpus}" if len(cpus) <= MAX_LETTERS else "")
    helpers = f", helper CPUs {format_folded_id_list(placement.helper_cpus)}" if placement.helper_cpus else ""
    memory = f", memory {memory_in_words(placement)}" if placement.nodes else ""
    return f"rank {placement.rank}{gpu}: {threads}{helpers}{memory}"


def _node_title(node: MemoryNodeInfo) -> str:
    size = "" if node.total_memory <= 0 else f", {node.total_memory / 2**30:.0f} GiB"
    none = ", no memory" if node.has_memory is False else ""
    return f"node {node.id}{size}{none}"


def _distances(node: MemoryNodeInfo) -> str:
    if not node.distances:
        return f"node {node.id}: distances unknown"
    distances = ", ".join(f"{distance} to node {other}" for other, distance in node.distances.items())
    return f"node {node.id}: {distances}"
