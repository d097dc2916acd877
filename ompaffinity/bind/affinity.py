"""Where a thread may run: set, read back (a setter's success proves nothing), and restored if it is still ours."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.proc import mask_of, start_time
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    from ompaffinity.bind.undo import Undo


class ThreadIdentity(NamedTuple):
    """A thread of this process: its kernel id, which a later thread may get again, and when it started."""

    number: int
    start_time: int | None

    @property
    def runs(self) -> bool:
        """Whether this very thread still runs."""
        return self == thread_identity(self.number)


def thread_identity(number: int) -> ThreadIdentity:
    """Return the identity of the thread that has this kernel id now."""
    return ThreadIdentity(number, start_time("self", number))


def set_mask(thread_id: int, cpus: Collection[int]) -> str | None:
    """Let a thread (0: the calling one) run on these CPUs; return why that does not hold, None if it does.

    A thread to which the kernel gives other CPUs keeps what it had (sched_setaffinity(2)).
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


def change_mask(number: int, cpus: Collection[int], undo: Undo) -> str | None:
    """Let the thread with this kernel id run on these CPUs until `undo` runs; return why that does not hold."""
    thread, before = thread_identity(number), mask_of(number)
    reason = set_mask(number, cpus)
    if reason is None and before is not None:
        undo.add(partial(_restore_mask, thread, before, set(cpus)))
    return reason


def _restore_mask(thread: ThreadIdentity, before: set[int], taken: set[int]) -> str | None:
    if not thread.runs or mask_of(thread.number) != taken:
        return None
    try:
        os.sched_setaffinity(thread.number, before)
    except ProcessLookupError:
        # It has ended meanwhile.
        return None
    except OSError as error:
        cpus = f"CPU {format_id_list(taken)} instead of {format_id_list(before)}"
        return f"thread {thread.number} keeps {cpus}, because the kernel rejects its former mask ({error.strerror})"
    return None
