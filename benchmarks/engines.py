"""What a plan gains real engines: two ranks bound by it, against two ranks as users start them.

torch, onnxruntime, llama.cpp and OpenVINO; alone and beside a busy process. The default is measured twice: the second
shows how far two equal variants differ. ``plan`` is the masks and variables alone; ``plan and settings`` adds the
settings of `ompaffinity.integrations.engines`, for engines that choose their number of threads by themselves.
Needs the extra ``test-engines``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.conditions import Conditions
from benchmarks.engine_steps import STEPS, make_model, work
from benchmarks.load import spinner
from benchmarks.teams import alive, compared, comparison_table, measured, start_team, written
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.openmp.variables import MANAGED_VARIABLES

RANKS = 2
DEFAULT = "default"
PACKAGES = {"torch": "torch", "onnxruntime": "onnxruntime", "llama.cpp": "xllamacpp", "OpenVINO": "openvino"}
SETTINGS = ("onnxruntime", "llama.cpp", "OpenVINO")
"""Engines that do not take their number of threads from the mask or from OpenMP variables."""


def main() -> None:
    """Measure, print, and write ``benchmarks/results/engines.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a window")
    parser.add_argument("--engines", nargs="+", default=[*STEPS], choices=[*STEPS])
    options = parser.parse_args()
    for name in MANAGED_VARIABLES:
        os.environ.pop(name, None)
    conditions = Conditions()
    cpus = sorted(os.sched_getaffinity(0))
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "model.gguf"))
        if "llama.cpp" in options.engines:
            make_model(model)
        for engine in options.engines:
            reports += _reports(engine, model, cpus, options)
    versions = ", ".join(f"{engine} {version(PACKAGES[engine])}" for engine in options.engines)
    head = f"{versions}; {RANKS} ranks, windows of {options.seconds:g} s, {options.rounds} shuffled rounds.\n"
    conditions.write("engines", written(head, reports), {"machine": head.strip(), "tables": reports})


def _reports(engine: str, model: str, cpus: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    manager = OMPProcessManager(runtime="gomp", tensor_parallel_size=RANKS, reserve=0)
    variants: dict[str, tuple[Any, bool]] = {
        DEFAULT: (lambda _rank: nullcontext(), False),
        f"{DEFAULT}, again": (lambda _rank: nullcontext(), False),
        "plan": (manager.configure_omp_envs, False),
    }
    if engine in SETTINGS:
        variants["plan and settings"] = (manager.configure_omp_envs, True)
    teams = {
        name: start_team(RANKS, start, work, (engine, model, settings)) for name, (start, settings) in variants.items()
    }
    reports = []
    with alive(teams):
        for beside in ("alone", "beside a busy process"):
            with ExitStack() as stack:
                load = [] if beside == "alone" else [stack.enter_context(spinner())]
                rounds = measured(teams, options.rounds, options.seconds, cpus, load)
            report = {
                "row": engine,
                "column": beside,
                "title": f"{engine}, {beside}",
                **compared(rounds, DEFAULT),
            }
            sys.stdout.write(comparison_table(report["title"], report) + "\n")
            sys.stdout.flush()
            reports.append(report)
    return reports


if __name__ == "__main__":
    main()
