"""A program whose OpenMP team works without end: ``python busy_team.py LIBRARY [THREADS [SECONDS]]``.

The threads of a team spin between two parallel regions, so that all of them use CPU time. With THREADS the program
sets their number itself; it prints a line when the team works.
"""

from __future__ import annotations

import ctypes
import sys
import time


def work(library: str, threads: int = 0, seconds: float = 120.0) -> None:
    """Form parallel regions for so many seconds; each thread calls ``free(NULL)``, and nothing of Python."""
    runtime = ctypes.CDLL(library)
    if threads:
        runtime.omp_set_num_threads(threads)
    nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
    end = time.monotonic() + seconds
    is_first = True
    while time.monotonic() < end:
        for _ in range(100):
            runtime.GOMP_parallel(nothing, None, 0, 0)
        if is_first:
            print("ready soon", flush=True)
        is_first = False


if __name__ == "__main__":
    work(sys.argv[1], *map(int, sys.argv[2:3]), *map(float, sys.argv[3:4]))
