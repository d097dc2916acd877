"""What binding gains a real torch worker: decoder layers with a KV cache, one token per step, against what users do.

Modes: one rank on all CPUs, two independent ranks (dp), two tensor-parallel ranks over gloo (tp). Every variant's
ranks are alive for the whole run; in shuffled rounds each works for a window while the others sleep. Goals for two
ranks: at least 0.98 of the best variant with the same OpenMP library on a quiet machine (missed only when the 95 %
interval of the ratio lies wholly below), 2.5 times the default; beside a busy neighbour at least 0.95 of the best.
``--awake`` shows what of it is the cost of waking CPUs. Needs torch and, for libiomp5, intel-openmp.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from benchmarks.conditions import Conditions
from benchmarks.load import awake, spinner
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.measure.session import QUIET_CPUS
from ompaffinity.measure.statistics import Interval, median_interval, paired_ratio
from ompaffinity.openmp.library_path import find_library
from ompaffinity.openmp.variables import MANAGED_VARIABLES
from ompaffinity.placement.request import WAIT_POLICIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

LAYERS, WIDTH, INNER, HEADS, CACHE, BATCH = 4, 512, 2048, 8, 256, 8
WARM_UP, REST_SECONDS = 2, 0.3
RANKS = {"one": 1, "dp": 2, "tp": 2}


class Team(NamedTuple):
    """The ranks of one variant."""

    connections: list[Connection]
    processes: list[Any]


class Window(NamedTuple):
    """What one variant did in one round: steps per second of all its ranks, and the CPUs that others took."""

    rate: float
    others: float


def main() -> None:
    """Measure, print, and write ``benchmarks/results/inference.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a window")
    parser.add_argument("--cpus", type=int, default=2, help="use so many CPUs of this process")
    parser.add_argument("--modes", nargs="+", default=[*RANKS], choices=[*RANKS])
    parser.add_argument("--types", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--waiting", action="store_true", help="compare the plan's wait policies, not bindings")
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
            with _teams(mode, kind, WAITS if options.waiting else VARIANTS) as teams:
                for neighbour in (False, True):
                    with ExitStack() as stack:
                        load = [stack.enter_context(spinner())] if neighbour else []
                        load += stack.enter_context(awake(cpus)) if options.awake else []
                        rounds = _measured(teams, options.rounds, options.seconds, cpus, load)
                    report.append(_judged(mode, kind, neighbour, rounds))
                    sys.stdout.write(_table(report[-1]) + "\n")
                    sys.stdout.flush()
    head = (
        f"{options.cpus} CPUs, windows of {options.seconds:g}"
        f" s, {options.rounds} shuffled rounds{', no CPU ever asleep' if options.awake else ''};"
        f" {LAYERS} layers of {WIDTH}, batch {BATCH}\n"
    )
    name = f"{'waiting' if options.waiting else 'inference'}{'-awake' if options.awake else ''}"
    conditions.write(name, "\n".join([head, *map(_table, report)]), {"machine": head.strip(), "tables": report})


# The variants.


@contextmanager
def _nothing(_mode: str, _rank: int) -> Iterator[None]:
    yield


def _plan(mode: str, runtime: str, wait_policy: str = "keep") -> OMPProcessManager:
    # The other variants have as many threads, so that bindings are compared and not reserves.
    size: dict[str, Any] = {"data_parallel_size" if mode == "dp" else "tensor_parallel_size": RANKS[mode]}
    return OMPProcessManager(runtime=runtime, granularity="thread", reserve=0, wait_policy=wait_policy, **size)


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


def _ours(runtime: str, wait_policy: str = "keep") -> Any:
    @contextmanager
    def start(mode: str, rank: int) -> Iterator[None]:
        with _plan(mode, runtime, wait_policy).configure_omp_envs(rank):
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
WAITS = {
    f"{name}, {library}": (library, variant)
    for library, runtime in ((GOMP, "gomp"), (IOMP, "iomp"))
    for name, variant in (
        ("default", _nothing),
        # Threads that spin without end do so in the windows of all others, too.
        *((f"--wait-policy {policy}", _ours(runtime, policy)) for policy in WAIT_POLICIES if policy != "active"),
    )
}


@contextmanager
def _teams(mode: str, kind: str, variants: dict[str, tuple[str, Any]]) -> Iterator[dict[str, Team]]:
    """Yield the ranks of every variant that can be had here, ready and asleep."""
    intel = find_library("libiomp5.so", os.environ, (os.path.join(sys.prefix, "lib"),))
    with tempfile.TemporaryDirectory() as folder:
        teams = {
            name: _started(mode, kind, variant, intel if library == IOMP else None, Path(folder, str(number)))
            for number, (name, (library, variant)) in enumerate(variants.items())
            if library == GOMP or intel is not None
        }
        try:
            yield teams
        finally:
            for team in teams.values():
                for connection in team.connections:
                    connection.send(0)
                for process in team.processes:
                    process.join()


def _started(mode: str, kind: str, variant: Any, preload: str | None, store: Path) -> Team:
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for rank in range(RANKS[mode]):
        ours, theirs = context.Pipe()
        with mock.patch.dict(os.environ):
            if preload is not None:
                os.environ["LD_PRELOAD"] = preload
            with variant(mode, rank):
                process = context.Process(target=_worker, args=(mode, kind, rank, str(store), theirs))
                process.start()
        connections.append(ours)
        processes.append(process)
    for connection in connections:
        connection.recv()
    return Team(connections, processes)


# The rounds.


def _measured(
    teams: dict[str, Team], rounds: int, seconds: float, cpus: Sequence[int], load: Sequence[Any]
) -> dict[str, list[Window]]:
    found: dict[str, list[Window]] = {name: [] for name in teams}
    names = [*teams]
    for turn in range(rounds + WARM_UP):
        random.Random(turn).shuffle(names)  # noqa: S311
        for name in names:
            window = _window(teams[name], seconds, cpus, load)
            if turn >= WARM_UP:
                found[name].append(window)
    return found


def _window(team: Team, seconds: float, cpus: Sequence[int], load: Sequence[Any]) -> Window:
    known = [process.pid for process in (*team.processes, *load)]
    # What the last team's idle threads still spin (libiomp5: 200 ms) is over.
    time.sleep(REST_SECONDS)
    busy, own = _busy(cpus), _used([*known, os.getpid()])
    start = time.perf_counter()
    for connection in team.connections:
        connection.send(seconds)
    steps = [connection.recv() for connection in team.connections]
    took = time.perf_counter() - start
    others = (_busy(cpus) - busy - (_used([*known, os.getpid()]) - own)) / took
    return Window(sum(steps) / took, max(0.0, others))


def _busy(cpus: Sequence[int]) -> float:
    names = {f"cpu{cpu}" for cpu in cpus}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = sum(int(row[place]) for row in rows if row[0] in names for place in (1, 2, 3, 6, 7, 8))
    return ticks / os.sysconf("SC_CLK_TCK")


def _used(pids: Sequence[int]) -> float:
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


# The worker.


def _worker(mode: str, kind: str, rank: int, store: str, connection: Any) -> None:
    import torch
    import torch.distributed as dist

    parts = RANKS[mode] if mode == "tp" else 1
    if parts > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=parts)
    number = torch.float32 if kind == "fp32" else torch.bfloat16
    torch.manual_seed(0)
    with torch.inference_mode():
        layers = [_Layer(torch, number, parts) for _ in range(LAYERS)]
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


class _Layer:
    """One decoder layer, or one rank's part of it: attention over a KV cache, and a gated network."""

    def __init__(self, torch: Any, number: Any, parts: int) -> None:
        def weights(rows: int, columns: int) -> Any:
            return (torch.randn(rows, columns) / rows**0.5).to(number)

        self._torch = torch
        self._heads, self._size = HEADS // parts, WIDTH // HEADS
        self._qkv = weights(WIDTH, 3 * WIDTH // parts)
        self._out = weights(WIDTH // parts, WIDTH)
        self._up = weights(WIDTH, 2 * INNER // parts)
        self._down = weights(INNER // parts, WIDTH)
        self._keys = torch.randn(BATCH, self._heads, CACHE, self._size).to(number)
        self._values = torch.randn(BATCH, self._heads, CACHE, self._size).to(number)

    def step(self, hidden: Any, position: int, dist: Any) -> Any:
        functional = self._torch.nn.functional
        query, key, value = functional.rms_norm(hidden, (WIDTH,)).matmul(self._qkv).chunk(3, dim=-1)
        shape = (BATCH, self._heads, 1, self._size)
        self._keys[:, :, position] = key.reshape(BATCH, self._heads, self._size)
        self._values[:, :, position] = value.reshape(BATCH, self._heads, self._size)
        seen = functional.scaled_dot_product_attention(query.reshape(shape), self._keys, self._values)
        part = seen.reshape(BATCH, -1).matmul(self._out)
        if dist is not None:
            dist.all_reduce(part)
        hidden = hidden + part
        gate, up = functional.rms_norm(hidden, (WIDTH,)).matmul(self._up).chunk(2, dim=-1)
        part = (functional.silu(gate) * up).matmul(self._down)
        if dist is not None:
            dist.all_reduce(part)
        return hidden + part


# What it prints.


def _judged(mode: str, kind: str, neighbour: bool, rounds: dict[str, list[Window]]) -> dict[str, Any]:
    """Return the rates, and the ratios to the default and to the best variant with the same library."""
    count = len(next(iter(rounds.values())))
    quiet = [turn for turn in range(count) if all(windows[turn].others <= QUIET_CPUS for windows in rounds.values())]
    counted = quiet if len(quiet) >= count // 2 else [*range(count)]
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
        words += [_interval(Interval(**row[column])) for column in ("to default", "to best rival")]
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.median:.2f}"
    return f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


if __name__ == "__main__":
    main()
