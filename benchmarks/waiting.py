"""How idle OpenMP threads should wait: ``--wait-policy`` for torch and llama.cpp, alone and beside neighbours.

One rank with two threads, and two ranks with one; neighbours that are busy for 0, 10, 50 and 100 % of the time on
whichever CPU the kernel puts them. The plan's default (keep) is measured twice: the second shows how far two equal
variants differ. For vLLM: ``python -m benchmarks.vllm --waiting``. Needs the extra ``test-engines``, and intel-openmp.
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
from benchmarks.engine_steps import make_model, work
from benchmarks.inference import intel_library
from benchmarks.load import spinner
from benchmarks.teams import alive, compared, comparison_table, measured, start_team, written
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.openmp.variables import MANAGED_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEP, AGAIN = "keep", "keep, again"
# Threads that spin without end (active) do so in the windows of all others, too.
POLICIES = {KEEP: "keep", AGAIN: "keep", "brief": "brief", "passive": "passive"}
PROGRAMS = {
    "torch with libgomp": ("torch", "gomp"),
    "torch with libiomp5": ("torch", "iomp"),
    "llama.cpp with libgomp": ("llama.cpp", "gomp"),
}
SHARES = (0.0, 0.1, 0.5, 1.0)


def main() -> None:
    """Measure, print, and write ``benchmarks/results/waiting.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a window")
    parser.add_argument("--programs", nargs="+", default=[*PROGRAMS], choices=[*PROGRAMS])
    options = parser.parse_args()
    for name in MANAGED_VARIABLES:
        os.environ.pop(name, None)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cpus)
    conditions = Conditions()
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "model.gguf"))
        make_model(model)
        for program in options.programs:
            for ranks in (1, 2):
                reports += _reports(program, ranks, model, cpus, options)
    head = f"{len(cpus)} CPUs, windows of {options.seconds:g} s, {options.rounds} shuffled rounds.\n"
    conditions.write("waiting", written(head, reports), {"machine": head.strip(), "tables": reports})


def _reports(
    program: str, ranks: int, model: str, cpus: list[int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    engine, runtime = PROGRAMS[program]
    teams = {
        name: start_team(ranks, partial(_start, ranks, runtime, policy), work, (engine, model, engine == "llama.cpp"))
        for name, policy in POLICIES.items()
    }
    threads = len(cpus) // ranks
    words = f"{program}, {ranks} rank{'s' if ranks > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    reports = []
    with alive(teams):
        for share in SHARES:
            with ExitStack() as stack:
                load = [stack.enter_context(spinner(share=share))] if share else []
                rounds = measured(teams, options.rounds, options.seconds, cpus, load)
            beside = f"a neighbour of {100 * share:.0f} %" if share else "alone"
            report = {"row": words, "column": beside, "title": f"{words}, {beside}", **compared(rounds, KEEP)}
            sys.stdout.write(comparison_table(report["title"], report) + "\n")
            sys.stdout.flush()
            reports.append(report)
    return reports


@contextmanager
def _start(ranks: int, runtime: str, policy: str, rank: int) -> Iterator[None]:
    with mock.patch.dict(os.environ):
        if runtime == "iomp":
            os.environ["LD_PRELOAD"] = intel_library() or ""
        manager = OMPProcessManager(
            runtime=runtime, tensor_parallel_size=ranks, reserve=0, wait_policy=policy, granularity="thread"
        )
        with manager.configure_omp_envs(rank):
            yield


if __name__ == "__main__":
    main()
