"""What the kernel tells of any process: its parent, what it was started with, its mask (proc(5))."""

from __future__ import annotations

import os


def parent_of(pid: int) -> int:
    """Return the number of a process's parent, 0 where there is no such process (any more)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field, the name in parentheses, may hold anything.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def started_with(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with; later changes do not show.

    Raises:
        OSError: it may not be read, or there is no such process.
    """
    with open(f"/proc/{pid}/environ", "rb") as file:
        entries = file.read().split(b"\0")
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def mask_of(number: int) -> set[int] | None:
    """Return the CPUs that a process or thread may run on, None where it has ended or the kernel does not tell."""
    try:
        return os.sched_getaffinity(number)
    except OSError:
        return None


def start_time_of_thread(number: int) -> int | None:
    """Return when a thread of this process started, in clock ticks since boot; None where there is no such thread."""
    try:
        with open(f"/proc/self/task/{number}/stat", "rb") as file:
            # Field 22 (proc(5)); the second field, the name in parentheses, may hold anything.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
