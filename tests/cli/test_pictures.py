"""Pictures of plans: as SVG and as letters; on every recorded machine, and on machines of any shape."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given

from ompaffinity.bind.live_plan import with_gpu_homes
from ompaffinity.cli.picture import MAX_CPUS, write_picture
from ompaffinity.cli.picture_style import COLOURS, STYLE
from ompaffinity.cli.png import FONTS
from ompaffinity.cli.terminal_map import LETTERS, print_map
from ompaffinity.cli.uses import BARRED, OFFLINE, SIBLING, STATES, uses
from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.model import Topology
from ompaffinity.topology.source import load_topology
from tests.conftest import needs_drawsvg, recorded_names, run_command
from tests.placement.machines import plan_for, synthetic
from tests.strategies import requests, topologies

SVG = "{http://www.w3.org/2000/svg}"


def planned(topology: Topology, ranks: int) -> Plan:
    """Plan for `ranks` ranks, or for one if the machine is too small."""
    request = PlacementRequest(tensor_parallel_size=ranks)
    try:
        return make_plan(topology, request)
    except PlacementError:
        return make_plan(topology, PlacementRequest())


def drawn(topology: Topology, plan: Plan, folder: Path) -> ElementTree.Element:
    path = folder / "plan.svg"
    write_picture(topology, plan, str(path))
    return ElementTree.parse(path).getroot()  # noqa: S314


def cells(root: ElementTree.Element) -> dict[int, ElementTree.Element]:
    """Return the rectangle of each CPU, by its tooltip."""
    found: dict[int, ElementTree.Element] = {}
    for rectangle in root.iter(f"{SVG}rect"):
        title = rectangle.find(f"{SVG}title")
        match = re.match(r"CPU ([0-9]+): ", "" if title is None or title.text is None else title.text)
        if match:
            assert int(match[1]) not in found
            found[int(match[1])] = rectangle
    return found


def title_of(rectangle: ElementTree.Element) -> str:
    """Return the tooltip of a rectangle, empty for none."""
    title = rectangle.find(f"{SVG}title")
    return "" if title is None else title.text or ""


def tooltip(rectangle: ElementTree.Element) -> str:
    title = rectangle.find(f"{SVG}title")
    assert title is not None
    return title.text or ""


@needs_drawsvg
def test_draws_every_cpu_in_the_colour_of_its_rank(tmp_path: Path) -> None:
    topology = synthetic("package:2 numa:1 core:4 pu:2")
    root = drawn(topology, planned(topology, 2), tmp_path)
    found = cells(root)
    assert found.keys() == {cpu.id for cpu in topology.cpus}
    assert (found[1].get("fill"), tooltip(found[1])) == (COLOURS[0], "CPU 1: rank 0, thread 0")
    assert (found[9].get("fill"), tooltip(found[9])) == (COLOURS[1], "CPU 9: rank 1, thread 0")
    assert found[6].get("class") == found[7].get("class") == "helper"
    assert found[6].get("stroke") == COLOURS[0]
    # The edge of each helper CPU, and of the mark in the legend.
    assert len(root.findall(f".//{SVG}rect[@fill='url(#helper0)']")) == 3
    assert root.find(f".//{SVG}pattern[@id='helper0']") is not None
    assert found[0].get("class") == "sibling"
    assert "smt-sibling: one thread per core" in tooltip(found[0])
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "package 0" in texts
    assert "node 1, 1 GiB" in texts
    assert "rank 0: 3 threads on CPU 1-5:2, helper CPUs 6-7, memory bind 0" in texts
    style = "".join(element.text or "" for element in root.iter(f"{SVG}style"))
    assert "prefers-color-scheme: dark" in style


@needs_drawsvg
@pytest.mark.parametrize("name", [name for name in recorded_names("sysfs", ".tar.gz") if not name.endswith("-nosys")])
def test_draws_every_recorded_machine_within_the_picture(name: str, recorded_machines: Path, tmp_path: Path) -> None:
    topology = load_topology(machine=str(recorded_machines / "sysfs" / f"{name}.tar.gz"))
    plan = planned(topology, 4)
    root = drawn(topology, plan, tmp_path)
    if len(topology.cpus) <= MAX_CPUS:
        assert cells(root).keys() == {cpu.id for cpu in topology.cpus}
    width, height = (float(root.get(side) or 0) for side in ("width", "height"))
    for rectangle in root.iter(f"{SVG}rect"):
        place = [float(rectangle.get(name) or 0) for name in ("x", "y", "width", "height")]
        assert place[0] + place[2] <= width + 0.2
        assert place[1] + place[3] <= height + 0.2


@needs_drawsvg
def test_folds_large_machines(tmp_path: Path) -> None:
    topology = synthetic("package:4 numa:4 l3:4 core:16 pu:2")
    root = drawn(topology, planned(topology, 16), tmp_path)
    shapes = len([*root.iter(f"{SVG}rect")])
    assert shapes < 400
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "r0: 1-31:2" in texts


@needs_drawsvg
def test_shows_rank_numbers_with_more_ranks_than_colours(tmp_path: Path) -> None:
    topology = synthetic("package:12 numa:1 core:2 pu:1")
    root = drawn(topology, planned(topology, 12), tmp_path)
    texts = Counter(text.text for text in root.iter(f"{SVG}text"))
    # The label is on the two cores of the rank.
    assert texts["r11"] == 2


def states(root: ElementTree.Element) -> dict[int, str | None]:
    return {cpu: rectangle.get("class") for cpu, rectangle in cells(root).items()}


@needs_drawsvg
def test_distinguishes_why_a_cpu_has_no_rank(tmp_path: Path) -> None:
    topology = synthetic("package:4 numa:1 core:1 pu:2")
    off = topology.cpus[7]._replace(online=False, allowed=False)
    topology = topology._replace(cpus=(*topology.cpus[:7], off))
    plan = make_plan(topology, PlacementRequest(cpus=(0, 1, 2, 3), span="node"))
    shown = states(drawn(topology, plan, tmp_path))
    assert (shown[0], shown[2], shown[4], shown[7]) == ("sibling", "idle unused-node", "barred", "off")


def test_idle_cpus_have_an_edge_of_their_reason() -> None:
    idle = [state for state in STATES.values() if state != SIBLING]
    assert len(idle) == len({*idle}) == 4
    assert all(f".{state.split()[1]} {{" in STYLE or state == "idle efficiency-core" for state in idle)


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


@needs_drawsvg
@pytest.mark.parametrize(
    ("nodes", "memory"), [(2, "rank 0: 1 thread on CPU 0, memory bind 0"), (1, "memory any, near 0")]
)
def test_the_legend_has_the_memory_as_the_table_has_it(tmp_path: Path, nodes: int, memory: str) -> None:
    topology = synthetic(f"package:2 {'numa:1 ' if nodes == 2 else ''}core:1 pu:1")
    plan = make_plan(topology, PlacementRequest(tensor_parallel_size=2))
    assert any(memory in text for text in texts(drawn(topology, plan, tmp_path)))


@needs_drawsvg
@pytest.mark.parametrize(("kibibytes", "size"), [(5118, "L3, 5 MiB"), (512, "L3, 0.5 MiB"), (1179648, "L3, 1152 MiB")])
def test_rounds_the_size_of_an_l3(tmp_path: Path, kibibytes: int, size: str) -> None:
    topology = synthetic(f"package:1 l3:2(size={kibibytes}KiB) core:2 pu:1")
    assert texts(drawn(topology, planned(topology, 1), tmp_path)).count(size) == 2


@needs_drawsvg
def test_draws_gpus_next_to_their_node(tmp_path: Path) -> None:
    request = PlacementRequest(tensor_parallel_size=2, numa_bind_nodes=(1, 1))
    topology = synthetic("package:2 numa:1 core:4 pu:1")
    request = with_gpu_homes(request, topology, synthetic=True)
    root = drawn(topology, make_plan(topology, request), tmp_path)
    frame = next(box for box in root.iter(f"{SVG}rect") if "node 1" in title_of(box) and box.get("class") == "node")
    for box in root.iter(f"{SVG}rect"):
        if box.get("class") == "gpu":
            assert all(float(frame.get(side) or 0) <= float(box.get(side) or 0) for side in ("x", "y"))
    assert {"GPU 0", "GPU 1"} <= {text.text for text in root.iter(f"{SVG}text")}


@needs_drawsvg
def test_draws_a_machine_without_a_plan(tmp_path: Path) -> None:
    topology = synthetic("package:1 numa:2 core:2 pu:1")
    isolated = topology.cpus[3]._replace(isolated=True)
    write_picture(topology._replace(cpus=(*topology.cpus[:3], isolated)), None, str(tmp_path / "machine.svg"))
    root = ElementTree.parse(tmp_path / "machine.svg").getroot()  # noqa: S314
    assert states(root) == {0: "free", 1: "free", 2: "free", 3: "idle"}


@needs_drawsvg
@pytest.mark.skipif(importlib.util.find_spec("resvg_py") is None, reason="resvg-py is not installed (the extra [png])")
@pytest.mark.skipif(not any(Path(path).exists() for path in FONTS), reason="no font is installed")
def test_draws_png(tmp_path: Path) -> None:
    done = run_command("topology", "--synthetic", "core:2 pu:1", "--svg", str(tmp_path / "machine.png"), "--map")
    assert (done.returncode, "o o" in done.stdout) == (0, True), done.stderr
    assert (tmp_path / "machine.png").read_bytes().startswith(b"\x89PNG")


@needs_drawsvg
@given(topologies(), requests())
def test_draws_machines_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory, topology: Topology, request: object
) -> None:
    assert isinstance(request, PlacementRequest)
    try:
        plan = make_plan(topology, request)
    except PlacementError:
        return
    root = drawn(topology, plan, tmp_path_factory.mktemp("picture"))
    assert cells(root).keys() == {cpu.id for cpu in topology.cpus}


@given(topologies(), requests())
def test_the_map_has_a_letter_for_every_cpu(topology: Topology, request: PlacementRequest) -> None:
    try:
        plan = make_plan(topology, request)
    except PlacementError:
        return
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_map(topology, plan)
    rows = text.getvalue().splitlines()[2:]
    end = next(number for number, row in enumerate(rows) if row.startswith("0 to 9"))
    letters = Counter("".join(row[17:] for row in rows[:end]))
    known = uses(topology, plan)
    expected = Counter(
        "*"
        if known[cpu.id].others
        else {BARRED: "x", OFFLINE: "-"}.get(known[cpu.id].state, ".")
        if known[cpu.id].rank is None
        else "+"
        if known[cpu.id].helper
        else LETTERS[(known[cpu.id].rank or 0) % len(LETTERS)]
        for cpu in topology.cpus
    )
    assert {letter: letters[letter] for letter in expected} == dict(expected)


def test_marks_cpus_of_several_ranks() -> None:
    done = run_command("plan", "--synthetic", "core:2 pu:1", "--tp", "5", "--oversubscribe", "--map")
    assert "0   * *" in done.stdout
    found = uses(synthetic("core:2 pu:1"), plan_for("core:2 pu:1", 5, oversubscribe=True))
    assert (found[0].rank, found[0].others) == (0, (1, 2))
    assert found[0].text == "rank 0, thread 0; rank 1, thread 0; rank 2, thread 0"


def test_map_prints_above_the_table_only(tmp_path: Path) -> None:
    done = run_command("plan", "--synthetic", "package:1 core:4 pu:2", "--map")
    assert ".0 .0 .0 ++" in done.stdout
    refused = run_command("plan", "--map", "--json")
    assert (refused.returncode, "--map goes with the table" in refused.stderr) == (2, True)


@needs_drawsvg
def test_rejects_an_unwritable_svg_file(tmp_path: Path) -> None:
    done = run_command("plan", "--svg", str(tmp_path / "plan.svg"))
    assert done.returncode == 0
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")
    refused = run_command("plan", "--svg", str(tmp_path / "no" / "plan.svg"))
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr


def test_names_the_extra_if_drawsvg_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "drawsvg", None)
    topology = synthetic("core:2 pu:1")
    with pytest.raises(RequestError, match=r"install 'ompaffinity\[svg\]'"):
        write_picture(topology, planned(topology, 1), str(tmp_path / "plan.svg"))
