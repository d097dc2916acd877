"""The manager's context: what entering and leaving it costs, and a bound child's start against an unbound one.

Goals: entering and leaving below 1 % of the start of a `spawn` process; the start of a bound child within 3 % of an
unbound one (a shell with numactl and a Python wrapper are measured beside it). Every round runs each once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.conditions import Conditions
from benchmarks.measure import ratio_table, ratios, table
from ompaffinity.bind.manager import OMPProcessManager

if TYPE_CHECKING:
    from collections.abc import Callable

CHILD = [sys.executable, "-c", "pass"]
WRAPPER = (
    "import os, sys; os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[1].split(',')});"
    " os.execv(sys.argv[2], sys.argv[2:])"
)


def main() -> None:
    """Measure, print, and write ``benchmarks/results/context.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    conditions = Conditions()
    manager = OMPProcessManager(tensor_parallel_size=1, runtime="gomp")
    contestants = _contestants(manager)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(options.rounds + 1):
        # The order turns around, so that no contestant always follows the same one.
        for name in contestants if turn % 2 else reversed(contestants):
            start = time.perf_counter()
            contestants[name]()
            if turn:
                times[name].append(time.perf_counter() - start)
    rows = {
        "context / spawn": ratios(times["context alone"], times["spawn, unbound"]),
        "spawn bound / unbound": ratios(times["spawn, in the context"], times["spawn, unbound"]),
        "child bound / unbound": ratios(times["child, in the context"], times["child, unbound"]),
        **{
            f"{name} / unbound": ratios(times[name], times["child, unbound"])
            for name in ("child, sh and numactl", "child, Python wrapper")
            if name in times
        },
    }
    text = f"{options.rounds} interleaved rounds.\n\n{table(times)}\n\n{ratio_table(rows)}"
    conditions.write("context", text, {"seconds": times, "ratios": rows})


def _contestants(manager: OMPProcessManager) -> dict[str, Callable[[], object]]:
    spawn = multiprocessing.get_context("spawn")
    cpus = ",".join(map(str, manager.plan.ranks[0].affinity))

    def started() -> None:
        process = spawn.Process(target=os.getpid)
        process.start()
        process.join()

    def inside(function: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            with manager.configure_omp_envs(0):
                function()

        return call

    def child() -> None:
        subprocess.run(CHILD, check=True)

    contestants: dict[str, Callable[[], object]] = {
        "context alone": inside(lambda: None),
        "spawn, unbound": started,
        "spawn, in the context": inside(started),
        "child, unbound": child,
        "child, in the context": inside(child),
        "child, Python wrapper": lambda: subprocess.run(
            [sys.executable, "-I", "-S", "-c", WRAPPER, cpus, *CHILD], check=True
        ),
    }
    if shutil.which("numactl"):
        command = ["sh", "-c", 'exec "$@"', "sh", "numactl", "-C", cpus, *CHILD]
        contestants["child, sh and numactl"] = lambda: subprocess.run(command, check=True)
    return contestants


if __name__ == "__main__":
    main()
