"""What binding gains a real torch worker: decoder layers with a KV cache, one token per step, against what users do.

Modes: one rank on all CPUs, two independent ranks (dp), two tensor-parallel ranks over gloo (tp). Every variant's
ranks are alive for the whole run; in shuffled rounds each works for a window while the others sleep. Goals for two
ranks: at least 0.98 of the best variant with the same OpenMP library on a quiet machine (missed only when the 95 %
interval of the ratio lies wholly below), 2.5 times the default; beside a busy neighbour at least 0.95 of the best.
``--awake`` shows what of it is the cost of waking CPUs. Needs torch and, for libiomp5, intel-openmp.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.conditions import Conditions
from benchmarks.decoder import BATCH, CACHE, LAYERS, WIDTH, DecoderLayer
from benchmarks.load import awake, spinner
from benchmarks.measure import interval_text
from benchmarks.teams import Team, Window, alive, measured, quiet_rounds, start_team
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.measure.statistics import Interval, median_interval, paired_ratio
from ompaffinity.openmp.library_path import find_library
from ompaffinity.openmp.variables import MANAGED_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

RANKS = {"one": 1, "dp": 2, "tp": 2}


def main() -> None:
    """Measure, print, and write ``benchmarks/results/inference.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a window")
    parser.add_argument("--cpus", type=int, default=2, help="use so many CPUs of this process")
    parser.add_argument("--modes", nargs="+", default=[*RANKS], choices=[*RANKS])
    parser.add_argument("--types", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--awake", action="store_true", help="let no CPU sleep")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[: options.cpus]
    os.sched_setaffinity(0, cpus)
    for name in MANAGED_VARIABLES:
        os.environ.pop(name, None)
    conditions = Conditions()
    report: list[dict[str, Any]] = []
    for mode in options.modes:
        for kind in options.types:
            with _teams(mode, kind) as teams:
                for neighbour in (False, True):
                    with ExitStack() as stack:
                        load = [stack.enter_context(spinner())] if neighbour else []
                        load += stack.enter_context(awake(cpus)) if options.awake else []
                        rounds = measured(teams, options.rounds, options.seconds, cpus, load)
                    report.append(_judged(mode, kind, neighbour, rounds))
                    sys.stdout.write(_table(report[-1]) + "\n")
                    sys.stdout.flush()
    head = (
        f"{options.cpus} CPUs, windows of {options.seconds:g}"
        f" s, {options.rounds} shuffled rounds{', no CPU ever asleep' if options.awake else ''};"
        f" {LAYERS} layers of {WIDTH}, batch {BATCH}\n"
    )
    name = f"inference{'-awake' if options.awake else ''}"
    conditions.write(name, "\n".join([head, *map(_table, report)]), {"machine": head.strip(), "tables": report})


# The variants.


@contextmanager
def _nothing(_mode: str, _rank: int) -> Iterator[None]:
    yield


def _plan(mode: str, runtime: str) -> OMPProcessManager:
    # The other variants have as many threads, so that bindings are compared and not reserves.
    size: dict[str, Any] = {"data_parallel_size" if mode == "dp" else "tensor_parallel_size": RANKS[mode]}
    return OMPProcessManager(runtime=runtime, granularity="thread", reserve=0, **size)


@contextmanager
def _threads(mode: str, rank: int) -> Iterator[None]:
    os.environ["OMP_NUM_THREADS"] = str(len(_plan(mode, "gomp").plan.ranks[rank].cpus))
    yield


@contextmanager
def _taskset(mode: str, rank: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _plan(mode, "gomp").plan.ranks[rank].cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _single_place(mode: str, rank: int) -> Iterator[None]:
    """What vLLM sets where it detects no OpenMP runtime."""
    cpus = _plan(mode, "gomp").plan.ranks[rank].cpus
    os.environ["OMP_NUM_THREADS"] = str(len(cpus))
    os.environ["OMP_PLACES"] = "{" + ",".join(map(str, cpus)) + "}"
    os.environ["OMP_PROC_BIND"] = "true"
    yield


def _ours(runtime: str) -> Any:
    @contextmanager
    def start(mode: str, rank: int) -> Iterator[None]:
        with _plan(mode, runtime).configure_omp_envs(rank):
            yield

    return start


GOMP, IOMP = "libgomp", "libiomp5"
VARIANTS = {
    f"default, {GOMP}": (GOMP, _nothing),
    f"OMP_NUM_THREADS, {GOMP}": (GOMP, _threads),
    f"taskset, {GOMP}": (GOMP, _taskset),
    f"single place, {GOMP}": (GOMP, _single_place),
    f"ours, {GOMP}": (GOMP, _ours("gomp")),
    f"default, {IOMP}": (IOMP, _nothing),
    f"OMP_NUM_THREADS, {IOMP}": (IOMP, _threads),
    f"taskset, {IOMP}": (IOMP, _taskset),
    f"ours, {IOMP}": (IOMP, _ours("iomp")),
}


@contextmanager
def _teams(mode: str, kind: str) -> Iterator[dict[str, Team]]:
    """Yield the ranks of every variant that can be had here, ready and asleep."""
    intel = intel_library()
    with tempfile.TemporaryDirectory() as folder:
        teams = {}
        for number, (name, (library, variant)) in enumerate(VARIANTS.items()):
            if library == GOMP or intel is not None:
                start = partial(_start, mode, variant, intel if library == IOMP else None)
                teams[name] = start_team(RANKS[mode], start, decode, (mode, kind, str(Path(folder, str(number)))))
        with alive(teams):
            yield teams


@contextmanager
def _start(mode: str, variant: Any, preload: str | None, rank: int) -> Iterator[None]:
    with mock.patch.dict(os.environ):
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload
        with variant(mode, rank):
            yield


def intel_library() -> str | None:
    """Return the path of libiomp5 that pip installed, or None."""
    return find_library("libiomp5.so", os.environ, (os.path.join(sys.prefix, "lib"),))


# The worker.


def decode(rank: int, mode: str, kind: str, store: str, connection: Any) -> None:
    """Serve as one rank of torch: a worker for `start_team`."""
    import torch
    import torch.distributed as dist

    parts = RANKS[mode] if mode == "tp" else 1
    if parts > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=parts)
    number = torch.float32 if kind == "fp32" else torch.bfloat16
    torch.manual_seed(0)
    with torch.inference_mode():
        layers = [DecoderLayer(torch, number, parts) for _ in range(LAYERS)]
        states = torch.randn(BATCH, WIDTH, dtype=number)
        stop = torch.zeros(1)
        connection.send("ready")
        while seconds := connection.recv():
            steps, end = 0, time.perf_counter() + seconds
            while True:
                hidden = states
                for layer in layers:
                    hidden = layer.step(hidden, steps % CACHE, dist if parts > 1 else None)
                steps += 1
                if parts > 1:
                    # All ranks must stop after the same step.
                    stop[0] = float(rank == 0 and time.perf_counter() > end)
                    dist.all_reduce(stop)
                if (stop[0] > 0) if parts > 1 else time.perf_counter() > end:
                    break
            # A step of a tensor-parallel group is one step, on whichever rank it is counted.
            connection.send(steps / parts)
    if parts > 1:
        dist.destroy_process_group()


# What it prints.


def _judged(mode: str, kind: str, neighbour: bool, rounds: dict[str, list[Window]]) -> dict[str, Any]:
    """Return the rates, and the ratios to the default and to the best variant with the same library."""
    counted = quiet_rounds(rounds)
    rates = {name: [windows[turn].rate for turn in counted] for name, windows in rounds.items()}
    rows: dict[str, Any] = {}
    for name, values in rates.items():
        library = name.rpartition(", ")[2]
        rivals = [other for other in rates if other.endswith(library) and other != name]
        best = max(rivals, key=lambda other: median_interval(rates[other]).median)
        rows[name] = {
            "rate": median_interval(values)._asdict(),
            "least": min(values),
            "most": max(values),
            "to default": paired_ratio(values, rates[f"default, {library}"])._asdict(),
            "best rival": best,
            "to best rival": paired_ratio(values, rates[best])._asdict(),
            "windows": [window._asdict() for window in rounds[name]],
        }
    return {"mode": mode, "type": kind, "neighbour": neighbour, "counted": counted, "rows": rows}


def _table(report: dict[str, Any]) -> str:
    beside = "beside a busy neighbour" if report["neighbour"] else "alone"
    lines = [
        f"### {report['mode']}, {report['type']}, {beside} ({len(report['counted'])} rounds)\n",
        "| variant | steps/s | least | most | to the default | to the best rival |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        words = [f"{row['rate']['median']:.0f}", f"{row['least']:.0f}", f"{row['most']:.0f}"]
        words += [interval_text(Interval(**row[column])) for column in ("to default", "to best rival")]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
