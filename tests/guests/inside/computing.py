"""A program that computes in OpenMP teams: ``python -m tests.guests.inside.computing LIBRARY THREADS WORKERS MIB``.

A server forks so many workers, or computes itself (0). Each of them prints its process id and the thread ids of its
team, in the order of the threads, and computes until standard input ends. With SIGUSR1 each thread pins itself to a
CPU: the first one to the last CPU, and so on.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.openmp.team import in_each_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ompaffinity.placement.model import RankPlacement

MODULE = "tests.guests.inside.computing"
BLOCK_BYTES = 2**20


@contextmanager
def started_program(
    library: str, threads: int, workers: int = 0, mebibytes: int = 0
) -> Iterator[tuple[int, dict[int, list[int]]]]:
    """Start the program; yield its process id and {id of each process that computes: its team}."""
    command = [sys.executable, "-m", MODULE, library, str(threads), str(workers), str(mebibytes)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(max(workers, 1))]
        yield process.pid, {int(pid): [int(number) for number in team] for pid, *team in lines}
        process.communicate()


@contextmanager
def bound_program(
    library: str, cpus: Sequence[int], mebibytes: int = 0
) -> Iterator[tuple[int, list[int], RankPlacement]]:
    """Start the program with a thread for each of these CPUs; yield its process id, its team and its placement."""
    manager = OMPProcessManager(bind=(tuple(cpus),), runtime="gomp" if "gomp" in library else "iomp")
    with ExitStack() as stack:
        with manager.configure_omp_envs(0) as placement:
            pid, teams = stack.enter_context(started_program(library, len(cpus), mebibytes=mebibytes))
        yield pid, teams[pid], placement


def compute(library: str, threads: int, mebibytes: int) -> None:
    """Compute in a team until standard input ends, with so much memory that is only held."""
    runtime, held = ctypes.CDLL(library), b"\1" * (mebibytes * BLOCK_BYTES)
    data, ended = bytes(BLOCK_BYTES), threading.Event()
    team = in_each_thread(runtime, threads=threads)
    # In one piece, for the workers write to one pipe.
    os.write(1, f"{' '.join(map(str, (os.getpid(), *team)))}\n".encode())

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    cpus, pinned = sorted(os.sched_getaffinity(team[0])), threading.Event()
    signal.signal(signal.SIGUSR1, lambda _number, _frame: pinned.set())

    def work() -> None:
        own = cpus[-1 - team.index(threading.get_native_id())] if len(team) <= len(cpus) else None
        # hashlib computes without the interpreter's lock.
        while not ended.is_set():
            hashlib.sha256(data)
            if own is not None and pinned.is_set():
                os.sched_setaffinity(0, {own})
                own = None

    in_each_thread(runtime, work, threads=threads)
    del held


def main() -> None:
    """Compute, or fork workers that do and wait for them."""
    library, (threads, workers, mebibytes) = sys.argv[1], map(int, sys.argv[2:5])
    children = []
    for _ in range(workers):
        child = os.fork()
        if child == 0:
            compute(library, threads, mebibytes)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    if not workers:
        compute(library, threads, mebibytes)


if __name__ == "__main__":
    main()
