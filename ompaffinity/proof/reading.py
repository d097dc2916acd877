"""Which processes are below some roots, and what is read of each: in full, or at little cost without end."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import ProcessEndedError, RequestError
from ompaffinity.proc import last_process_id, mask_of, processes_below, scheduling, thread_ids
from ompaffinity.proof.observe import facts_of, observe_again, observe_process, observe_thread, with_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ompaffinity.proof.observe import ProcessState, ThreadState

MAX_PROCESSES = 4096
"""More processes below the given ones are not a server."""
DETAIL_WINDOWS = 8
"""Once a process has loaded a runtime, its environment and libraries are read again after so many windows."""
FIRST_READINGS, LATER_READINGS, COMPLETE_READINGS = (1, 2, 4, 8, 16), 16, 64
"""A process that is watched is read in full after so many windows, and then each time that so many have passed: more
seldom once it has a library that computes.
"""
SEARCH_PAUSE = 500
"""All processes are searched again after so many times of what the search takes ..."""
SEARCH_SECONDS = 60.0
"""... and after so long in any case: in a container the number of the last process may not be shown."""


class FullReader:
    """Reads all that is known of each process: for an observation of some seconds."""

    def __init__(self) -> None:
        self._readings: dict[int, int] = {}

    def processes(self, roots: Sequence[int]) -> list[int]:
        """Return the roots and all processes below them.

        Raises:
            RequestError: there are more than `MAX_PROCESSES`.
        """
        below = (pid for pid in processes_below(*roots) if pid not in (*roots, os.getpid()))
        # A root may be below another one.
        found = list(dict.fromkeys((*roots, *below)))
        if len(found) > MAX_PROCESSES:
            raise RequestError(f"there are {len(found)} processes below; name the workers (at most {MAX_PROCESSES})")
        return found

    def read(self, pid: int, known: ProcessState | None) -> ProcessState:
        """Return the state of a process; `known` is what was read before.

        Raises:
            ProcessEndedError: there is no such process (any more).
            RequestError: not even its threads may be seen.
        """
        count = self._counted(pid, known)
        if known is None or not known.runtimes or count % DETAIL_WINDOWS == 0:
            return observe_process(pid, with_memory=False)
        return observe_again(known)

    def _counted(self, pid: int, known: ProcessState | None) -> int:
        """Return how often a process was read, this time included."""
        count = self._readings[pid] = 1 if known is None else self._readings.get(pid, 0) + 1
        return count


class LightReader(FullReader):
    """Reads of known processes the masks and CPU times of their threads alone, and searches new ones only when due."""

    def __init__(self) -> None:
        super().__init__()
        self._roots: tuple[int, ...] = ()
        self._found: list[int] = []
        self._newest: int | None = None
        self._searched, self._search_took = 0.0, 0.0
        self._has_ended = False

    def processes(self, roots: Sequence[int]) -> list[int]:
        """Return the roots and all processes below them, as found by the last search that was due."""
        newest, start = last_process_id(), time.monotonic()
        passed = start - self._searched
        is_new = newest != self._newest and passed >= SEARCH_PAUSE * self._search_took
        if is_new or self._has_ended or tuple(roots) != self._roots or passed >= SEARCH_SECONDS:
            self._found = super().processes(roots)
            self._roots, self._newest, self._has_ended = tuple(roots), newest, False
            self._searched, self._search_took = start, time.monotonic() - start
            self._readings = {pid: count for pid, count in self._readings.items() if pid in self._found}
        return self._found

    def read(self, pid: int, known: ProcessState | None) -> ProcessState:
        """Return the state of a process; of one that computes the libraries are read seldom, of others less and less.

        Raises:
            ProcessEndedError, RequestError: as of `FullReader`.
        """
        count = self._counted(pid, known)
        is_complete = known is not None and bool(known.runtimes or known.engines)
        later = COMPLETE_READINGS if is_complete else LATER_READINGS
        is_due = count % later == 0 or count in FIRST_READINGS
        try:
            if known is None or is_due:
                return _with_masks(observe_process(pid, with_memory=False))
            state = _observed_lightly(known)
            # It has executed another program: everything is new.
            return state if state.forked == known.forked else _with_masks(observe_process(pid, with_memory=False))
        except ProcessEndedError:
            self._has_ended = True
            raise


def _with_masks(state: ProcessState) -> ProcessState:
    """Return a state with the masks that sched_getaffinity(2) reports: without CPUs that are offline."""
    threads = []
    for thread in state.threads:
        mask = mask_of(thread.thread_id)
        threads.append(thread if mask is None else thread._replace(cpus=tuple(sorted(mask))))
    return state._replace(threads=tuple(threads))


def _observed_lightly(known: ProcessState) -> ProcessState:
    facts, seconds = facts_of(known.pid), time.monotonic()
    if facts.start_time != known.start_time:
        raise ProcessEndedError(f"process {known.pid} has ended, and another one has its number now")
    try:
        threads = tuple(_threads_lightly(known))
    except OSError:
        threads = ()
    if not threads or (facts.has_ended and len(threads) == 1):
        raise ProcessEndedError(f"process {known.pid} has ended")
    return with_threads(known, facts, seconds, threads)


def _threads_lightly(known: ProcessState) -> Iterator[ThreadState]:
    before = {thread.thread_id: thread for thread in known.threads}
    for number in thread_ids(known.pid):
        thread, times, mask = before.get(number), scheduling(known.pid, number), mask_of(number)
        if mask is None:
            continue
        is_known = thread is not None and times is not None and thread.delay_ns is not None
        if thread is not None and times is not None and is_known and times.run_ns >= thread.run_ns:
            yield thread._replace(cpus=tuple(sorted(mask)), run_ns=times.run_ns, delay_ns=times.delay_ns)
            continue
        # A new thread, one whose number was used before, or a kernel that counts in clock ticks only.
        found = observe_thread(known.pid, number)
        if found is not None:
            yield found._replace(cpus=tuple(sorted(mask)))
