"""Detection: a complete Topology from sysfs against ``lscpu --sysroot`` and lstopo on the same tree, and live.

Goals: 8192 CPUs at most 0.05 of lscpu, also on the tree of an old kernel, which lacks some files; no steeper than
linear; live at least twice as fast as lscpu.
Ours is measured in this process (that is how a server uses it), the peers as programs, their start included.

"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.conditions import Conditions
from benchmarks.measure import ratio_table, ratios, table, time_calls
from benchmarks.trees import write_tree
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ((128, 2), (1024, 2), (8192, 4))


def main() -> None:
    """Measure, print, and write ``benchmarks/results/detection.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--largest", type=int, default=8192, help="leave out the larger trees")
    options = parser.parse_args()
    rounds, sizes = options.rounds, [size for size in SIZES if size[0] <= options.largest]
    conditions = Conditions()
    # First, for large trees leave the caches of the kernel and of the CPUs in another state than a server finds.
    live = time_calls({"ours": load_topology, "lscpu": lambda: _run(["lscpu"])}, rounds)
    times = {f"live, {name}": seconds for name, seconds in live.items()}
    rows = {"live, ours / lscpu": ratios(live["ours"], live["lscpu"])}
    for cpus, threads in sizes:
        for old_kernel in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                tree = write_tree(Path(folder), cpus, threads, old_kernel=old_kernel)
                measured = time_calls(_contestants(tree, cpus), rounds)
            machine = f"{cpus} CPUs, old kernel" if old_kernel else f"{cpus} CPUs"
            times |= {f"{machine}, {name}": seconds for name, seconds in measured.items()}
            for peer in ("lscpu", "lstopo"):
                if peer in measured:
                    rows[f"{machine}, ours / {peer}"] = ratios(measured["ours"], measured[peer])
    least, most = sizes[0][0], sizes[-1][0]
    small, large = (statistics.median(times[f"{cpus} CPUs, ours"]) for cpus in (least, most))
    exponent = math.log(large / small) / math.log(most / least) if most > least else 1
    heading = f"{rounds} interleaved rounds, warm cache."
    growth = f"Growth from {least} to {most} CPUs: cost ~ CPUs^{exponent:.2f} (1 is linear)."
    text = "\n\n".join([heading, table(times), ratio_table(rows), growth])
    conditions.write("detection", text, {"seconds": times, "ratios": rows, "exponent": exponent})


def _contestants(tree: Path, cpus: int) -> dict[str, Callable[[], object]]:
    def ours() -> None:
        if len(load_topology(machine=str(tree)).cpus) != cpus:
            raise RuntimeError("the tree was not read whole")

    contestants: dict[str, Callable[[], object]] = {
        "ours": ours,
        "lscpu": lambda: _run(["lscpu", "--sysroot", str(tree), "-J", "-e=CPU,CORE,SOCKET,NODE,CACHE,ONLINE"]),
    }
    lstopo = shutil.which("lstopo-no-graphics")
    if lstopo is not None:
        environment = {"HWLOC_FSROOT": str(tree), "HWLOC_COMPONENTS": "linux,stop", "HWLOC_THISSYSTEM": "0"}
        contestants["lstopo"] = lambda: _run([lstopo, "--of", "xml"], environment)
    return contestants


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        check=True,
    )


if __name__ == "__main__":
    main()
