"""Let the kernel kill a child when the thread that started it ends: PR_SET_PDEATHSIG(2const)."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PARENT_HAS_ENDED = 127
"""The status of a child whose parent ended before the child could ask for the signal."""


def killed_with_parent() -> Callable[[], None]:
    """Return what a child of this process calls before it executes its program, to be killed with this process.

    It is called between fork(2) and execve(2), so it loads nothing and takes no lock: only a process of one thread may
    start children so.
    """
    # PyDLL does not release the interpreter's lock for the call.
    prctl = ctypes.PyDLL(None).prctl
    arguments = [ctypes.c_int(PR_SET_PDEATHSIG), *(ctypes.c_ulong(value) for value in (signal.SIGKILL, 0, 0, 0))]
    parent = os.getpid()

    def ask() -> None:
        # A kernel that refuses leaves the child to the process that guards the ranks.
        prctl(*arguments)
        if os.getppid() != parent:
            os._exit(PARENT_HAS_ENDED)

    return ask
