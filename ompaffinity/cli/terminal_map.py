"""The map of a machine, or of a plan on it, for terminals: a letter per CPU, readable without colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ompaffinity.cli.console import new_console, new_table
from ompaffinity.cli.uses import BARRED, FREE, OFFLINE, uses
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.cli.uses import Use
    from ompaffinity.placement.model import Plan
    from ompaffinity.topology.model import LogicalCPUInfo, Topology

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
HELPER, SHARED, LEFT_OUT, NOT_ALLOWED, OFFLINE_LETTER = "+", "*", ".", "x", "-"
FREE_LETTER = "o"
COLOURS = ("bright_yellow", "cyan", "green", "magenta", "bright_blue", "red", "bright_cyan", "yellow")
LAYOUT = "one group per core, | between L3 caches"
PLAN_LEGEND = (
    f"{LETTERS[0]} to {LETTERS[9]}, {LETTERS[10]} to {LETTERS[-1]}, then {LETTERS[0]} again: OpenMP threads of a rank;"
    f" {HELPER} helper CPU; {SHARED} shared by ranks; {LEFT_OUT} left out; {NOT_ALLOWED} not usable; {OFFLINE_LETTER}"
    f" offline; {LAYOUT}"
)
MACHINE_LEGEND = (
    f"{FREE_LETTER} allowed CPU; {LEFT_OUT} isolated; {NOT_ALLOWED} not allowed; {OFFLINE_LETTER} offline; {LAYOUT}"
)
STATE_LETTERS = {FREE: FREE_LETTER, BARRED: NOT_ALLOWED, OFFLINE: OFFLINE_LETTER}


def print_map(topology: Topology, plan: Plan | None) -> None:
    """Print one row per NUMA node of each package, with the plan if there is one."""
    console = new_console()
    table = new_table("package", "node", "CPUs", right=("package", "node"))
    nodes: dict[tuple[int, int], list[LogicalCPUInfo]] = {}
    for cpu in topology.cpus:
        nodes.setdefault((cpu.package, cpu.numa_node), []).append(cpu)
    use_of = uses(topology, plan)
    for (package, node), members in sorted(nodes.items(), key=lambda item: item[1][0].id):
        letters = Text()
        for index, cache in enumerate(_groups(members, "l3")):
            letters.append(" | " if index else "", "dim")
            for number, core in enumerate(_groups(cache, "physical_core")):
                letters.append(" " if number else "")
                for cpu in core:
                    letters.append(*_letter(use_of.get(cpu.id)))
        table.add_row(_number(package), _number(node), letters)
    console.print(table)
    console.print(Text(MACHINE_LEGEND if plan is None else PLAN_LEGEND, "dim"))
    console.print()


def _letter(use: Use | None) -> tuple[str, str]:
    """Return the letter of a CPU and its style."""
    if use is None or use.rank is None:
        return (LEFT_OUT if use is None else STATE_LETTERS.get(use.state, LEFT_OUT)), "dim"
    if use.others:
        return SHARED, "bold"
    return (HELPER if use.helper else LETTERS[use.rank % len(LETTERS)]), f"bold {COLOURS[use.rank % len(COLOURS)]}"


def _groups(cpus: Sequence[LogicalCPUInfo], level: str) -> list[list[LogicalCPUInfo]]:
    """Return the CPUs of each group; a CPU with an unknown core is a core of its own."""
    groups: dict[object, list[LogicalCPUInfo]] = {}
    for cpu in cpus:
        number = getattr(cpu, level)
        alone = number == UNKNOWN and level == "physical_core"
        groups.setdefault((cpu.id, "alone") if alone else number, []).append(cpu)
    return sorted(groups.values(), key=lambda group: group[0].id)


def _number(number: int) -> str:
    return "" if number == UNKNOWN else str(number)
