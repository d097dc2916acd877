"""A parallel region without a compiler: a function in each thread of the calling thread's OpenMP team.

``GOMP_parallel(function, data, threads, flags)`` is GCC's entry to one (libgomp manual, "Implementing PARALLEL");
LLVM's libomp and Intel's libiomp5 export it as well.
"""

from __future__ import annotations

import ctypes
from threading import get_native_id
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def in_each_thread(
    runtime: ctypes.CDLL, function: Callable[[], object] = lambda: None, threads: int = 0
) -> tuple[int, ...]:
    """Call `function` in each thread of a team of `threads` (0: the runtime's default); return their kernel ids.

    They are in the order of the OpenMP threads. What `function` raises is printed and otherwise lost (ctypes).

    Raises:
        AttributeError: the library is no OpenMP runtime.
    """
    team: dict[int, int] = {}

    def body(_data: object) -> None:
        team[runtime.omp_get_thread_num()] = get_native_id()
        function()

    runtime.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body), None, threads, 0)
    return tuple(team[number] for number in sorted(team))
