"""Signals at every moment, slow readers, and many cycles: what is left running, lost, or leaked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "OMPAFFINITY_FAULTS_MARK"
"""The variable by which everything that a launcher has started is found again."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL)
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "run": ("run", "--tp", "2", "--oversubscribe", "--grace", "1"),
    "verify": ("verify", "--tp", "2", "--oversubscribe", "--seconds", "5"),
    "compare": ("compare", "--tp", "2", "--oversubscribe", "--variant", "none", "--variant", "plan"),
}
COMMAND = ("--", "sh", "-c", "sleep 300 & sleep 300")
"""A rank with a child of its own."""
LAST_MOMENT = 1.0
"""Seconds after the start at which the last signals come: everything is running then."""


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ompaffinity", *arguments]


def marked(mark: str) -> list[int]:
    """Return the processes that have this mark in their environment."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(entry))
    return found


def orphans_of(verb: str, number: signal.Signals, moment: float) -> int:
    """Signal a launcher at a moment; return how many processes outlive it for 5 seconds (they are killed)."""
    mark = f"{os.getpid()}-{verb}-{number}-{moment}"
    launcher = subprocess.Popen(
        _python(*LAUNCHERS[verb], *COMMAND),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        start_new_session=True,
    )
    time.sleep(moment)
    launcher.send_signal(number)
    try:
        launcher.wait(30)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()
    end = time.monotonic() + 5
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def moments(count: int, seed: int) -> Iterator[tuple[str, signal.Signals, float]]:
    """Yield `count` random moments for each launcher and signal."""
    chance = random.Random(seed)  # noqa: S311
    for _ in range(count):
        for verb in LAUNCHERS:
            for number in SIGNALS:
                yield verb, number, chance.uniform(0.02, LAST_MOMENT)


def lost_lines(ranks: int, lines: int, *, pause: float, stops: bool) -> int:
    """Return how many lines of ranks a slow reader does not get; `stops`: the launcher is stopped now and then too."""
    with subprocess.Popen(
        _python("run", "--tp", str(ranks), "--oversubscribe", "--", "seq", "1", str(lines)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    ) as launcher:
        assert launcher.stdout is not None
        if stops:
            threading.Thread(target=_stop_now_and_then, args=(launcher,), daemon=True).start()
        received = 0
        while block := os.read(launcher.stdout.fileno(), 65536):
            received += block.count(b"\n")
            time.sleep(pause)
    return ranks * lines - received


def _stop_now_and_then(launcher: subprocess.Popen[bytes]) -> None:
    for _ in range(5):
        time.sleep(0.1)
        launcher.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        launcher.send_signal(signal.SIGCONT)


CYCLES = """
import gc, json, os, resource, sys, threading
import ompaffinity

def state():
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mask": sorted(os.sched_getaffinity(0)),
        "environment": dict(os.environ),
        "children": open("/proc/self/task/%d/children" % os.getpid()).read(),
        "directories": sorted(os.listdir(os.environ.get("TMPDIR", "/tmp"))),
    }

def cycle(number):
    manager = ompaffinity.OMPProcessManager(tensor_parallel_size=1)
    try:
        with manager.configure_omp_envs(0):
            if number % 10 == 0:
                os.waitpid(os.spawnv(os.P_NOWAIT, "/bin/true", ["true"]), 0)
            if number % 7 == 0:
                raise KeyError(number)
    except KeyError:
        pass

for number in range(20):
    cycle(number)
before, memory = state(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(int(sys.argv[1])):
    cycle(number)
gc.collect()
after = state()
changed = [name for name in before if before[name] != after[name]]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
print(json.dumps({"changed": changed, "grown_kib": grown}))
"""


def leaks(cycles: int) -> str:
    """Return what many contexts in one process leave behind, as JSON: what changed, and how far memory has grown."""
    done = subprocess.run(
        [sys.executable, "-c", CYCLES, str(cycles)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.strip()
