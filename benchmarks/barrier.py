"""What an empty parallel region costs, its barrier with it, under several bindings and OpenMP libraries.

The program is built by gcc for libgomp; LLVM's and Intel's runtimes are preloaded over it and take its calls. One rank,
and two at once, on this process's CPUs; the variants are those of ``ompaffinity compare``.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.conditions import Conditions
from ompaffinity.measure.runs import metric_of
from ompaffinity.measure.session import Comparison, Settings, compare_variants
from ompaffinity.measure.variants import VARIANTS, variant_manager
from ompaffinity.openmp.library_path import find_library
from ompaffinity.openmp.variables import MANAGED_VARIABLES

NAMES = ("none", "threads", "mask", "plan", "team", "passive")
LIBRARIES = {"libgomp": ("gomp", None), "libomp (LLVM)": ("iomp", "libomp.so.5"), "libiomp5": ("iomp", "libiomp5.so")}


def main() -> None:
    """Measure, print, and write ``benchmarks/results/barrier.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=120, help="seconds for each library and number of ranks")
    parser.add_argument("--cpus", type=int, default=2, help="use so many CPUs of this process")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[: options.cpus]
    os.sched_setaffinity(0, cpus)
    for name in MANAGED_VARIABLES:
        os.environ.pop(name, None)
    logging.getLogger("ompaffinity").disabled = True
    conditions = Conditions()
    text = ["Microseconds per region, summed over the ranks.\n"]
    documents = []
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "barrier"))
        source = str(Path(__file__).with_name("barrier.c"))
        subprocess.run(["gcc", "-O2", "-fopenmp", source, "-o", program], check=True)
        for library, (family, file) in LIBRARIES.items():
            path = None if file is None else find_library(file, os.environ, (os.path.join(sys.prefix, "lib"),))
            if file is not None and path is None:
                continue
            for ranks in (1, 2):
                comparison = _compared(program, family, path, ranks, options.budget)
                documents.append({"library": library, "ranks": ranks} | comparison.to_document())
                text.append(_table(library, ranks, comparison))
                sys.stdout.write(text[-1])
                sys.stdout.flush()
    conditions.write("barrier", "\n".join(text), {"comparisons": documents})


def _compared(program: str, family: str, preload: str | None, ranks: int, budget: float) -> Comparison:
    if preload is not None:
        os.environ["LD_PRELOAD"] = preload
    try:
        asked = {"tensor_parallel_size": ranks, "runtime": family, "granularity": "thread", "reserve": 0}
        managers = {name: (VARIANTS[name], variant_manager(VARIANTS[name], asked)) for name in NAMES}
        settings = Settings((program,), metric_of("us: ([0-9.]+)"), lower=True, budget_seconds=budget, precision=0.05)
        return compare_variants(managers, settings)
    finally:
        os.environ.pop("LD_PRELOAD", None)


def _table(library: str, ranks: int, comparison: Comparison) -> str:
    busy = "" if comparison.quiet else ", others were busy meanwhile"
    lines = [
        f"### {library}, {ranks} {'rank' if ranks == 1 else 'ranks'} ({len(comparison.counted)} rounds{busy})\n",
        "| variant | us | 95 % interval | speed, none = 1 | |",
        "|---|---|---|---|---|",
    ]
    for result in comparison.results:
        figure, speed = result.figure, result.speed
        ends = "" if figure.low is None or figure.high is None else f"{figure.low:.2f} to {figure.high:.2f}"
        lines.append(
            f"| {result.variant.name} | {figure.median:.2f} | {ends} | {speed.median:.2f} | {result.verdict} |"
        )
    return "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    main()
