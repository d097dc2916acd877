"""What a worker does in the tests: form an OpenMP team and read from the kernel where each thread may run.

Also a program: ``python team.py LIBRARY`` prints the answer as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from typing import Any


def form_team(library: str) -> dict[int, list[int]]:
    """Run a parallel region of the OpenMP library (a file or soname) and return {thread number: allowed CPUs}."""
    runtime = ctypes.CDLL(library)
    masks: dict[int, list[int]] = {}

    def body(_: object) -> None:
        masks[runtime.omp_get_thread_num()] = sorted(os.sched_getaffinity(0))

    # GOMP_parallel(function, data, threads (0 = default), flags): GCC's entry, which LLVM and Intel export too.
    runtime.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body), None, 0, 0)
    return masks


def report(library: str) -> dict[str, Any]:
    """Form a team and describe this process: masks, environment, a later thread's mask, memory policy."""
    inherited = sorted(os.sched_getaffinity(0))
    masks = form_team(library)
    later: list[list[int]] = []
    thread = threading.Thread(target=lambda: later.append(sorted(os.sched_getaffinity(0))))
    thread.start()
    thread.join()
    return {
        "inherited": inherited,
        "masks": [masks[number] for number in sorted(masks)],
        "later": later[0],
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("OMP", "GOMP", "KMP"))},
    }


def send_report(connection: Any, library: str) -> None:
    """The target of a multiprocessing worker."""
    connection.send(report(library))
    connection.close()


def torch_report(library: str | None = None) -> dict[str, Any]:
    """The same after ``import torch`` and one operation, with the OpenMP library that torch brought or another one."""
    import torch

    torch.ones(512, 512).matmul(torch.ones(512, 512))
    with open("/proc/self/maps") as maps:
        bundled = next(line.split()[-1] for line in maps if "libgomp" in line)
    return report(library or bundled) | {"threads": torch.get_num_threads()}


def send_torch_report(connection: Any) -> None:
    """The target of a multiprocessing worker."""
    connection.send(torch_report())
    connection.close()


def wait_for_death_of_parent_thread() -> None:
    """End with status 0 if the thread that started this process outlives a second; its death would be a SIGKILL."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    time.sleep(1)


def send_policy(connection: Any) -> None:
    """Send this thread's memory policy and the policy that the kernel reports for a fresh mapping."""
    from ompaffinity.bind.mempolicy import thread_policy

    connection.send(tuple(thread_policy()))
    connection.close()


if __name__ == "__main__":
    print(json.dumps(report(sys.argv[1])))
