"""The tables of ``plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.cli.machine_tables import print_machine
from ompaffinity.cli.text import format_bytes, ids_text, print_line, print_messages, print_table
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
    print_machine(topology)
    print_line((f"variables for {_RUNTIME_NAMES[plan.runtime]}, {_GRANULARITY_NAMES[plan.granularity]}", "dim"))
    print_line()
    budgets = any(placement.memory_budget is not None for placement in plan.ranks)
    gpus = any(placement.gpu is not None for placement in plan.ranks)
    headings = (
        *("rank", *(("GPU",) if gpus else ()), *PLACEMENT_HEADINGS),
        *(("budget",) if budgets else ()),
    )
    rows: list[tuple[str, ...]] = []
    for placement in plan.ranks:
        if rank is None or placement.rank == rank:
            budget = (format_bytes(placement.memory_budget),) if budgets else ()
            gpu = (str(placement.gpu),) if gpus else ()
            rows.append((str(placement.rank), *gpu, *_placement_cells(placement), *budget))
    print_table(headings, rows, right=("rank", "GPU", "threads", "budget"))
    if plan.left_out:
        print_line()
        left_out = [(str(len(group.cpus)), ids_text(group.cpus), group.reason, group.detail) for group in plan.left_out]
        print_table(("left out", "CPUs", "reason", "what to do about it"), left_out, right=("left out",))
    print_messages(plan.messages)


def print_cluster_plan(plan: ClusterPlan, rank: int | None = None) -> None:
    """Print one row per rank of a cluster, with its node, and the messages."""
    machines = counted(len(plan.hosts), "machine")
    print_line((f"{counted(len(plan.ranks), 'rank')} on {machines} of the cluster", "bold"))
    print_line()
    gpus = any(chosen.placement.gpu is not None for chosen in plan.ranks)
    headings = ("rank", "node", *(("GPU",) if gpus else ()), *PLACEMENT_HEADINGS)
    rows: list[tuple[str, ...]] = []
    for chosen in plan.ranks:
        if rank is None or chosen.rank == rank:
            _, node = plan.home(chosen.rank)
            gpu = (str(chosen.placement.gpu),) if gpus else ()
            rows.append((str(chosen.rank), node.name, *gpu, *_placement_cells(chosen.placement)))
    print_table(headings, rows, right=("rank", "GPU", "threads"))
    print_messages(plan.all_messages)


def _placement_cells(placement: RankPlacement) -> tuple[str, ...]:
    """Return the cells of `PLACEMENT_HEADINGS` for a rank."""
    if not placement.bound:
        return ("", "not bound", "", "", "")
    return (
        str(len(placement.cpus)),
        _ordered(placement.cpus),
        ids_text(placement.helper_cpus, "none"),
        ids_text(placement.places[0]),
        memory_in_words(placement),
    )


def _ordered(cpus: tuple[int, ...]) -> str:
    """Return ascending CPUs as an id list with ranges, and CPUs in another order one by one."""
    return format_folded_id_list(cpus) if list(cpus) == sorted(cpus) else ",".join(map(str, cpus))
