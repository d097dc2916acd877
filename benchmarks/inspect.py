"""What ``inspect`` costs beside 500 processes with 20 threads each, against ``ps`` that lists the same threads.

The processes sleep; ``inspect --all`` finds no rank among them, and one of them is inspected by its pid. ``ps`` prints
what the kernel has about each thread, as a user would who looks for it by hand.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import ExitStack

from benchmarks.conditions import Conditions
from benchmarks.measure import ratio_table, ratios, table, time_commands

PROGRAM = r"""
import os, sys, threading, time
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        for _ in range(int(sys.argv[2]) - 1):
            threading.Thread(target=time.sleep, args=(86400,), daemon=True).start()
        os.write(1, b"%d\n" % os.getpid())
        sys.stdin.read()
        os._exit(0)
sys.stdin.read()
"""


def main() -> None:
    """Measure, print, and write ``benchmarks/results/inspect.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=500)
    parser.add_argument("--threads", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    conditions = Conditions()
    words = [sys.executable, "-c", PROGRAM, str(options.processes), str(options.threads)]
    with ExitStack() as stack:
        parent = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        stack.callback(parent.communicate, "")
        if parent.stdout is None:
            raise RuntimeError("the processes have no output")
        pids = [int(parent.stdout.readline()) for _ in range(options.processes)]
        ours = [sys.executable, "-m", "ompaffinity", "inspect", "--seconds", "1"]
        threads = ["ps", "-eL", "-o", "pid,tid,psr,pcpu,comm"]
        commands = {
            "ps -eL": threads,
            "ps -eL, again": threads,
            "inspect --all --seconds 1": [*ours, "--all"],
            "inspect --seconds 1, of one process": [*ours, str(pids[0])],
        }
        times = time_commands(commands, options.rounds)
    rows = {
        "inspect --all / ps -eL": ratios(times["inspect --all --seconds 1"], times["ps -eL"]),
        "A/A: ps -eL": ratios(times["ps -eL"], times["ps -eL, again"]),
    }
    head = f"{options.processes} processes x {options.threads} threads, {options.rounds} interleaved rounds."
    note = "inspect watches for one second of these times."
    text = "\n\n".join([head, table(times), ratio_table(rows), note])
    conditions.write("inspect", text, {"seconds": times, "ratios": rows})


if __name__ == "__main__":
    main()
