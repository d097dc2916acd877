"""What it costs to be wrong: plans that users make by hand, against the plan of ompaffinity, with a torch worker.

One rank on all CPUs, two independent ranks (dp), two tensor-parallel ranks over gloo (tp); GNU's library, which torch
brings. The plan is measured twice: the second shows how far two equal variants differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.conditions import Conditions
from benchmarks.inference import RANKS, decode
from benchmarks.load import spinner
from benchmarks.teams import alive, compared, comparison_table, measured, start_team, written
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.openmp.variables import MANAGED_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAN = "plan"
MODES = {"one": "one rank of two threads", "dp": "two independent ranks", "tp": "two tensor-parallel ranks over gloo"}


def main() -> None:
    """Measure, print, and write ``benchmarks/results/mistakes.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a window")
    options = parser.parse_args()
    for name in MANAGED_VARIABLES:
        os.environ.pop(name, None)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cpus)
    conditions = Conditions()
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in RANKS:
            teams = {
                name: start_team(
                    RANKS[mode], partial(_start, mode, variant), decode, (mode, "fp32", str(Path(folder, mode + name)))
                )
                for name, variant in _variants(mode, cpus).items()
            }
            with alive(teams):
                for beside in ("alone", "beside a busy process"):
                    with ExitStack() as stack:
                        load = [] if beside == "alone" else [stack.enter_context(spinner())]
                        rounds = measured(teams, options.rounds, options.seconds, cpus, load)
                    words = MODES[mode]
                    report = {"row": words, "column": beside, "title": f"{words}, {beside}", **compared(rounds, PLAN)}
                    sys.stdout.write(comparison_table(report["title"], report) + "\n")
                    sys.stdout.flush()
                    reports.append(report)
    head = f"{len(cpus)} CPUs, windows of {options.seconds:g} s, {options.rounds} shuffled rounds.\n"
    conditions.write("mistakes", written(head, reports), {"machine": head.strip(), "tables": reports})


def _variants(mode: str, cpus: list[int]) -> dict[str, dict[str, Any]]:
    """Return {name: how the ranks are started}: `plan` options, `variables`, or the CPUs of a `mask`."""
    threads = {"OMP_NUM_THREADS": str(len(cpus) // RANKS[mode])}
    first = ",".join(map(str, cpus[:1]))
    found: dict[str, dict[str, Any]] = {PLAN: {"plan": {}}, f"{PLAN}, again": {"plan": {}}}
    if mode == "one":
        found["one place: OMP_PLACES with one CPU"] = {"variables": {"OMP_PLACES": f"{{{first}}}", **threads}}
        found["one thread: OMP_NUM_THREADS=1"] = {"variables": {"OMP_NUM_THREADS": "1"}}
        found["mask of one CPU: taskset -c 0"] = {"mask": cpus[:1], "variables": threads}
    else:
        found["default threads: one per CPU in each rank"] = {}
        found["both ranks on one CPU: OMP_PROC_BIND=close in each"] = {
            "variables": {"OMP_PROC_BIND": "close", **threads}
        }
    found["right threads, not bound: --bind none"] = {"variables": threads}
    return found


@contextmanager
def _start(mode: str, how: dict[str, Any], rank: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    with ExitStack() as stack:
        if "plan" in how:
            size = "data_parallel_size" if mode == "dp" else "tensor_parallel_size"
            request: dict[str, Any] = {size: RANKS[mode], "reserve": 0, "runtime": "gomp"}
            stack.enter_context(OMPProcessManager(**request).configure_omp_envs(rank))
        stack.enter_context(mock.patch.dict(os.environ, how.get("variables", {})))
        stack.callback(os.sched_setaffinity, 0, before)
        if "mask" in how:
            os.sched_setaffinity(0, how["mask"])
        yield


if __name__ == "__main__":
    main()
