"""Planning: a plan from a topology that was read, against ``lscpu --sysroot`` reading the same machine.

Goals: 8192 CPUs and 512 ranks in at most 5 % of lscpu's time; no steeper than n log n in the CPUs (16 per rank).
Planning is measured in this process, lscpu as a program; every round runs both.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.conditions import Conditions
from benchmarks.measure import ratio_table, ratios, table, time_calls
from benchmarks.trees import write_tree
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ((128, 2), (1024, 2), (8192, 4))
CPUS_PER_RANK = 16


def main() -> None:
    """Measure, print, and write ``benchmarks/results/planning.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    conditions = Conditions()
    times: dict[str, list[float]] = {}
    rows: dict[str, dict[str, float]] = {}
    medians = []
    for cpus, threads in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            tree = write_tree(Path(folder), cpus, threads)
            measured = time_calls(_contestants(tree, cpus // CPUS_PER_RANK), options.rounds)
        times |= {f"{cpus} CPUs, {name}": seconds for name, seconds in measured.items()}
        rows[f"{cpus} CPUs, plan / lscpu"] = ratios(measured["plan"], measured["lscpu"])
        rows[f"{cpus} CPUs, plan of an odd number of ranks / lscpu"] = ratios(measured["odd"], measured["lscpu"])
        medians.append(statistics.median(measured["plan"]))
    least, most = SIZES[0][0], SIZES[-1][0]
    growth = medians[-1] / medians[0]
    allowed = most * math.log(most) / (least * math.log(least))
    text = (
        f"{options.rounds} interleaved rounds, warm cache.\n\n"
        f"{table(times)}\n\n{ratio_table(rows)}\n\n"
        f"Growth from {least} to {most} CPUs: {growth:.0f} times (n log n: {allowed:.0f} times).\n"
    )
    conditions.write("planning", text, {"seconds": times, "ratios": rows, "growth": growth})


def _contestants(tree: Path, ranks: int) -> dict[str, Callable[[], object]]:
    topology = load_topology(machine=str(tree))
    command = ["lscpu", "--sysroot", str(tree), "-J", "-e=CPU,CORE,SOCKET,NODE,CACHE,ONLINE"]
    return {
        "plan": lambda: make_plan(topology, PlacementRequest(tensor_parallel_size=ranks)),
        "odd": lambda: make_plan(topology, PlacementRequest(tensor_parallel_size=ranks - ranks // 3)),
        "lscpu": lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True),
    }


if __name__ == "__main__":
    main()
