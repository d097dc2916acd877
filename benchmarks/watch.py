"""What watching costs: the CPU time per check of 8 ranks with 64 threads each, and as a part of one CPU.

Goal: less than 0.5 % of one CPU at the default interval of 5 seconds, which is 25 ms per check. The threads wake ten
times a second, so that every one of them has used CPU time in every interval.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from benchmarks.conditions import Conditions
from benchmarks.measure import interval_text, ratio_table, ratios, table
from ompaffinity.measure.statistics import median_interval
from ompaffinity.placement.model import RankPlacement
from ompaffinity.proof.watch import Watcher

PROGRAM = """
import ctypes, sys, threading, time
ctypes.CDLL("libgomp.so.1")
def work():
    while True:
        time.sleep(0.1)
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    """Measure, print, and write ``benchmarks/results/watch.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--checks", type=int, default=40)
    options = parser.parse_args()
    conditions = Conditions()
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    command = [sys.executable, "-c", PROGRAM, str(options.threads)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(options.ranks)
    ]
    try:
        for worker in workers:
            if worker.stdout is None or not worker.stdout.readline():
                raise RuntimeError("a worker did not start")
        seconds = measured([worker.pid for worker in workers], cpus, options)
    finally:
        for worker in workers:
            worker.communicate("")
    report(seconds, options, conditions)


def measured(pids: list[int], cpus: tuple[int, ...], options: argparse.Namespace) -> list[float]:
    """Return the CPU time of each check, in seconds."""
    plan = [
        RankPlacement(
            rank,
            rank,
            cpus=tuple(cpus[number % len(cpus)] for number in range(options.threads)),
            places=(cpus,) * options.threads,
            affinity=cpus,
        )
        for rank in range(len(pids))
    ]
    watcher = Watcher(pids, plan)
    found = [rank.pid for rank in watcher.start().ranks]
    if sorted(pid or 0 for pid in found) != sorted(pids):
        raise RuntimeError(f"{len(found)} ranks are watched, not {len(pids)}")
    seconds = []
    for _ in range(options.checks):
        time.sleep(options.interval)
        start = time.process_time()
        watcher.check()
        watcher.files()
        seconds.append(time.process_time() - start)
    return seconds


def report(seconds: list[float], options: argparse.Namespace, conditions: Conditions) -> None:
    """Print the figures and write the results."""
    times = {"check": seconds}
    share = [100 * value / options.interval for value in seconds]
    ranks = f"{options.ranks} ranks x {options.threads} threads"
    heading = f"{ranks}, {options.checks} checks every {options.interval:g} s."
    summary = (
        f"Of one CPU: median {interval_text(median_interval(share))} %, mean {statistics.fmean(share):.2f} %,"
        f" most {max(share):.2f} % (goal: less than 0.5 %)."
    )
    rows = {"A/A: even / odd checks": ratios(seconds[::2], seconds[1::2])}
    text = "\n\n".join([heading, table(times), ratio_table(rows), summary])
    conditions.write("watch", text, {"seconds": times, "percent_of_one_cpu": share, "ratios": rows})


if __name__ == "__main__":
    main()
