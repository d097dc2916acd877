"""An OpenMP parallel region without a compiler: call a function in each thread of a team.

``GOMP_parallel(function, data, threads, flags)`` starts a parallel region (libgomp manual, "Implementing the PARALLEL
construct"); libomp and libiomp5 export it, too.
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
    """Call `function` in each thread of a team of `threads` (0: the runtime's default).

    Return the kernel's thread ids in the order of the OpenMP threads. ctypes prints exceptions of `function` and drops
    them.

    Raises:
        AttributeError: the library is not an OpenMP runtime.
    """
    team: dict[int, int] = {}

    def body(_data: object) -> None:
        team[runtime.omp_get_thread_num()] = get_native_id()
        function()

    runtime.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body), None, threads, 0)
    return tuple(team[number] for number in sorted(team))
