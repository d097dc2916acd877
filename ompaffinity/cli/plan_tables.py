"""The tables of ``plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ompaffinity.cli.console import Cell, format_bytes, ids_cell, new_console, new_table, print_messages
from ompaffinity.cli.machine_tables import machine_line
from ompaffinity.cli.uses import memory_in_words
from ompaffinity.ids import format_folded_id_list
from ompaffinity.messages import counted

if TYPE_CHECKING:
    from ompaffinity.integrations.ray.cluster import ClusterPlan
    from ompaffinity.placement.model import Plan, RankPlacement
    from ompaffinity.topology.model import Topology

PLACEMENT_HEADINGS = ("threads", "CPUs", "helper CPUs", "thread 0, others", "memory")
"""`thread 0, others`: the mask of OpenMP thread 0, which the threads inherit that do not belong to the team."""
_RUNTIME_NAMES = {"gomp": "GNU libgomp", "iomp": "Intel and LLVM OpenMP", "omp": "any OpenMP runtime (standard)"}
_GRANULARITY_NAMES = {"thread": "each thread on its own CPU", "team": "a team that floats within the rank's CPUs"}


def print_plan(topology: Topology, plan: Plan, rank: int | None = None) -> None:
    """Print one row per rank, the CPUs left out with the reason, and the messages."""
    console = new_console()
    console.print(machine_line(topology))
    console.print(f"variables for {_RUNTIME_NAMES[plan.runtime]}, {_GRANULARITY_NAMES[plan.granularity]}", style="dim")
    console.print()
    budgets = any(placement.memory_budget is not None for placement in plan.ranks)
    gpus = any(placement.gpu is not None for placement in plan.ranks)
    headings = (
        *("rank", *(("GPU",) if gpus else ()), *PLACEMENT_HEADINGS),
        *(("budget",) if budgets else ()),
    )
    ranks = new_table(*headings, right=("rank", "GPU", "threads", "budget"))
    for placement in plan.ranks:
        if rank is None or placement.rank == rank:
            budget = (format_bytes(placement.memory_budget),) if budgets else ()
            gpu = (str(placement.gpu),) if gpus else ()
            ranks.add_row(str(placement.rank), *gpu, *_placement_cells(placement), *budget)
    console.print(ranks)
    if plan.left_out:
        console.print()
        left_out = new_table("left out", "CPUs", "reason", "what to do about it", right=("left out",))
        for group in plan.left_out:
            left_out.add_row(str(len(group.cpus)), ids_cell(group.cpus), group.reason, group.detail)
        console.print(left_out)
    print_messages(plan.messages)


def print_cluster_plan(plan: ClusterPlan, rank: int | None = None) -> None:
    """Print one row per rank of a cluster, with its node, and the messages."""
    console = new_console()
    machines = counted(len(plan.hosts), "machine")
    console.print(Text(f"{counted(len(plan.ranks), 'rank')} on {machines} of the cluster", style="bold"))
    console.print()
    gpus = any(chosen.placement.gpu is not None for chosen in plan.ranks)
    headings = ("rank", "node", *(("GPU",) if gpus else ()), *PLACEMENT_HEADINGS)
    table = new_table(*headings, right=("rank", "GPU", "threads"))
    for chosen in plan.ranks:
        if rank is None or chosen.rank == rank:
            _, node = plan.home(chosen.rank)
            gpu = (str(chosen.placement.gpu),) if gpus else ()
            table.add_row(str(chosen.rank), node.name, *gpu, *_placement_cells(chosen.placement))
    console.print(table)
    print_messages(plan.all_messages)


def _placement_cells(placement: RankPlacement) -> tuple[str | Cell, ...]:
    """Return the cells of `PLACEMENT_HEADINGS` for a rank."""
    if not placement.bound:
        return ("", "not bound", "", "", "")
    return (
        str(len(placement.cpus)),
        Cell(_ordered(placement.cpus)),
        ids_cell(placement.helper_cpus, "none"),
        ids_cell(placement.places[0]),
        memory_in_words(placement),
    )


def _ordered(cpus: tuple[int, ...]) -> str:
    """Return ascending CPUs as an id list with ranges, and CPUs in another order one by one."""
    return format_folded_id_list(cpus) if list(cpus) == sorted(cpus) else ",".join(map(str, cpus))
