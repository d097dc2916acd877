"""The processes at the top of the watched trees: those that were named, or all that carry a placement."""

from __future__ import annotations

import os

from ompaffinity.placement.document import PLACEMENT_VARIABLE, PUBLISHED_NAME
from ompaffinity.proc import environment_of, memory_file, parent_of, process_ids, start_time
from ompaffinity.proof.reading import COMPLETE_READINGS, FIRST_READINGS


class NamedRoots:
    """Processes that were named. One that has ended is none any more, whatever process has its number later."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        self._started = {pid: start_time(pid) for pid in pids}

    def current(self) -> list[int]:
        """Return those that are still the same processes."""
        self._started = {pid: start for pid, start in self._started.items() if start_time(pid) == start}
        return [*self._started]


class CarryingRoots:
    """All processes here that carry a placement, without those that are below another one."""

    def __init__(self) -> None:
        self._looks: dict[int, int] = {}
        self._carrying: dict[int, int | None] = {}

    def current(self) -> list[int]:
        """Return the processes, ascending."""
        pids = process_ids()
        self._carrying = {pid: start for pid, start in self._carrying.items() if start_time(pid) == start}
        self._looks = {pid: self._looks.get(pid, 0) + 1 for pid in pids}
        for pid, count in self._looks.items():
            # A process is seen before it executes its program, or binds itself later.
            if pid not in self._carrying and (count in FIRST_READINGS or count % COMPLETE_READINGS == 0):
                started = start_time(pid)
                if started is not None and carries_placement(pid):
                    self._carrying[pid] = started
        return [pid for pid in sorted(self._carrying) if parent_of(pid) not in self._carrying]


def carries_placement(pid: int) -> bool:
    """Return whether a process was started with a placement, or published one (setproctitle overwrites the former)."""
    try:
        environment = environment_of(pid)
    except OSError:
        return False
    if PLACEMENT_VARIABLE in environment.variables:
        return pid != os.getpid()
    return not environment.complete and memory_file(pid, PUBLISHED_NAME, 1) is not None
