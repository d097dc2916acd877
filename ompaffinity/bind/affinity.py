"""Where a thread may run: set by number, and read back, for a setter's silence is not success."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list

if TYPE_CHECKING:
    from collections.abc import Collection


def set_mask(thread_id: int, cpus: Collection[int]) -> str | None:
    """Let a thread (0: the calling one) run on these CPUs; return why that does not hold, None if it does.

    A thread that the kernel gives something else keeps what it had (sched_setaffinity(2)).
    """
    if not hasattr(os, "sched_setaffinity"):
        return "this system cannot bind threads to CPUs"
    try:
        before = os.sched_getaffinity(thread_id)
        os.sched_setaffinity(thread_id, cpus)
        got = os.sched_getaffinity(thread_id)
        if got == set(cpus):
            return None
        os.sched_setaffinity(thread_id, before)
    except OSError as error:
        return str(error.strerror)
    return f"the kernel gave only CPU {format_id_list(got)}"
