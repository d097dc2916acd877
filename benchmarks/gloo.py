"""What a binding costs or gains two tensor-parallel ranks that talk over gloo, with the right number of threads.

Every variant has two ranks alive for the whole run; in shuffled rounds each runs for a window while the others sleep.
Goal: the manager's workers are no slower than unbound ones (the 95 % interval of the ratio). Needs torch; `--cpus N`
narrows this process.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.conditions import Conditions
from benchmarks.load import awake, spinner
from benchmarks.measure import interval_text
from benchmarks.teams import Team, alive, start_team
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.measure.statistics import median_interval, paired_ratio
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.placement.model import Plan

WIDTH, LAYERS, BATCH = 512, 4, 8


def main() -> None:
    """Measure, print, and write ``benchmarks/results/gloo-N-cpus.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a window")
    parser.add_argument("--cpus", type=int, default=2, help="use so many CPUs of this process")
    parser.add_argument("--neighbour", action="store_true", help="keep the first CPU busy with another process")
    parser.add_argument("--awake", action="store_true", help="let no CPU sleep")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[: options.cpus]
    os.sched_setaffinity(0, cpus)
    # Begun before and written after the load of this benchmark itself, which is then not taken for that of others.
    conditions = Conditions()
    with ExitStack() as stack:
        if options.neighbour:
            stack.enter_context(spinner(cpus[:1]))
        if options.awake:
            stack.enter_context(awake(cpus))
        rates = _measured(options.rounds, options.seconds)
    _report(rates, options, conditions)


def _measured(rounds: int, seconds: float) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        teams = {
            name: start_team(2, start, _worker, (str(Path(folder, name.replace(" ", "-").replace(",", ""))),))
            for name, start in VARIANTS.items()
        }
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        names = list(VARIANTS)
        with alive(teams):
            for turn in range(rounds + 1):
                random.Random(turn).shuffle(names)  # noqa: S311
                for name in names:
                    rate = _window(teams[name], seconds)
                    if turn:
                        rates[name].append(rate)
    return rates


def _report(rates: dict[str, list[float]], options: argparse.Namespace, conditions: Conditions) -> None:
    lines = ["| variant | steps/s | relative to unbound |", "|---|---|---|"]
    for name, values in rates.items():
        relative = interval_text(paired_ratio(values, rates["unbound"]))
        lines.append(f"| {name} | {interval_text(median_interval(values), 0)} | {relative} |")
    text = (
        f"{options.cpus} CPUs"
        f"{', one of them busy' if options.neighbour else ''}{', never asleep' if options.awake else ''},"
        f" {options.rounds} shuffled rounds\n\n"
    ) + "\n".join(lines)
    name = f"gloo-{options.cpus}-cpus{'-neighbour' if options.neighbour else ''}{'-awake' if options.awake else ''}"
    conditions.write(name, text, {"steps_per_second": rates})


def _plan(**request: Any) -> Plan:
    return make_plan(load_topology(), PlacementRequest(tensor_parallel_size=2, runtime="gomp", **request))


@contextmanager
def _unbound(rank: int) -> Iterator[None]:
    """The same number of threads, and nothing else."""
    threads = len(_plan().ranks[rank].cpus)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    yield
    del os.environ["OMP_NUM_THREADS"]


@contextmanager
def _pinned(rank: int) -> Iterator[None]:
    """Each thread on its CPU, the first one too, and so every later thread on the first one's."""
    with OMPProcessManager(_plan()).configure_omp_envs(rank) as placement:
        os.environ["OMP_PLACES"] = ",".join(f"{{{cpu}}}" for cpu in placement.cpus)
        yield


@contextmanager
def _managed(rank: int) -> Iterator[None]:
    with OMPProcessManager(_plan()).configure_omp_envs(rank):
        yield


@contextmanager
def _team(rank: int) -> Iterator[None]:
    with OMPProcessManager(_plan(granularity="team")).configure_omp_envs(rank):
        yield


@contextmanager
def _node(rank: int) -> Iterator[None]:
    with OMPProcessManager(_plan(helper_cpus="node")).configure_omp_envs(rank):
        yield


VARIANTS = {
    "unbound": _unbound,
    "pinned": _pinned,
    "the plan": _managed,
    "the plan, team": _team,
    "the plan, --helper-cpus node": _node,
}


def _window(team: Team, seconds: float) -> float:
    start = time.perf_counter()
    for connection in team.connections:
        connection.send(seconds)
    steps = [connection.recv() for connection in team.connections]
    return float(steps[0]) / (time.perf_counter() - start)


def _worker(rank: int, store: str, connection: Any) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    with torch.inference_mode():
        up = [torch.randn(WIDTH, 2 * WIDTH) / WIDTH for _ in range(LAYERS)]
        down = [torch.randn(2 * WIDTH, WIDTH) / WIDTH for _ in range(LAYERS)]
        states = torch.randn(BATCH, WIDTH)
        stop = torch.zeros(1)
        connection.send("ready")
        while seconds := connection.recv():
            steps, end = 0, time.perf_counter() + seconds
            while True:
                hidden = states
                for first, second in zip(up, down):
                    hidden = torch.nn.functional.silu(hidden @ first) @ second
                    dist.all_reduce(hidden)
                    hidden = hidden / hidden.norm()
                steps += 1
                # Both ranks must stop after the same step.
                stop[0] = float(rank == 0 and time.perf_counter() > end)
                dist.all_reduce(stop)
                if stop[0] > 0:
                    break
            connection.send(steps)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
