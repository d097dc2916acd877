"""A worker that only forms a team: what ``verify`` starts for each rank, through the manager.

`main`, with the library as the only argument, forms the library's OpenMP team, touches memory in
every thread, writes one line of JSON, and waits for the end of its input, so that the kernel can be asked
about it meanwhile.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

from ompaffinity.openmp.team import in_each_thread

TOUCHED_BYTES = 8 * 2**20
"""What each thread touches, in pages of its own."""


def form_team(library: str) -> tuple[list[int], list[mmap.mmap]]:
    """Return the thread ids of the team, in the order of its threads, and the memory that they touched.

    Raises:
        OSError: the library cannot be loaded.
        AttributeError: it is no OpenMP runtime.
    """
    touched: list[mmap.mmap] = []

    def touch() -> None:
        memory = mmap.mmap(-1, TOUCHED_BYTES)
        for start in range(0, TOUCHED_BYTES, mmap.PAGESIZE):
            memory[start] = 1
        touched.append(memory)

    return list(in_each_thread(ctypes.CDLL(library), touch)), touched


def main() -> None:
    """Form the team, report it, and wait."""
    import json

    # LLVM's and Intel's runtimes display their threads on standard output, GNU's on standard error.
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        team, touched = form_team(sys.argv[1])
        answer: dict[str, object] = {"team": team, "touched": len(touched)}
    except (OSError, AttributeError) as error:
        answer = {"error": f"{sys.argv[1]} cannot be used as an OpenMP runtime: {error}"}
    answer_to.write(json.dumps(answer) + "\n")
    answer_to.flush()
    sys.stdin.read()
