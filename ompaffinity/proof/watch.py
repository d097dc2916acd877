"""Keep checking the ranks of running servers against their placements: what changed, why, and how to repair it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.placement.document import PLACEMENT_VARIABLE, PUBLISHED_NAME
from ompaffinity.proc import environment_of, memory_file, parent_of, process_ids
from ompaffinity.proof.drift import REPLANNED
from ompaffinity.proof.foreign import busiest_others, cpu_times, own_seconds, ticks_of_others
from ompaffinity.proof.observe import observe_process, require_proc
from ompaffinity.proof.rank_watch import RankWatch, Surroundings
from ompaffinity.proof.reading import FIRST_READINGS, LATER_READINGS, LightReader
from ompaffinity.proof.replan import is_possible, planned_again
from ompaffinity.proof.sampling import WINDOW_SECONDS, TreeObserver, observe_for
from ompaffinity.proof.timeline import CONFIRMING_WINDOWS
from ompaffinity.proof.verdict import UNPROVEN
from ompaffinity.proof.watch_status import RankStatus, WatchStatus
from ompaffinity.topology.limits import cpuset_cpus, cpuset_files
from ompaffinity.topology.source import load_topology
from ompaffinity.topology.sysfs import read_online
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.drift import Change
    from ompaffinity.proof.tree import Member

START_SECONDS = 5.0
"""For so long the ranks are observed at most before the first report."""
KEPT_WINDOWS = 16
MEMORY_SECONDS = 60.0
"""Where the pages are is read again after so long at the earliest ..."""
MEMORY_PAUSE = 1000
"""... and after so many times of the CPU time that reading takes."""
LEAST_SECONDS = 0.25
"""Two checks are at least so far apart: the kernel counts CPU time in steps of 10 ms."""
Key = tuple[int, tuple[int, ...]]


class Watcher:
    """Checks the ranks of process trees again and again.

    `roots` are servers or workers. `plan` are the placements that their ranks should have instead of those that they
    were started with. With `everything` all processes here that carry a placement are watched; then, and with
    `may_be_empty`, there may be none yet. With `repair` what has drifted is bound again. `memory_seconds`: where the
    pages are is read again after so long at the earliest.

    Raises:
        RequestError: there is no such process, or it may not be seen.
    """

    def __init__(
        self,
        roots: Iterable[int] = (),
        plan: Sequence[RankPlacement] | None = None,
        *,
        everything: bool = False,
        may_be_empty: bool = False,
        repair: bool = False,
        memory_seconds: float = MEMORY_SECONDS,
    ) -> None:
        require_proc()
        self.roots = tuple(dict.fromkeys(roots))
        for pid in self.roots:
            observe_process(pid, with_memory=False)
        self._everything, self._repair, self._memory_seconds = everything, repair, memory_seconds
        self._plan, self._may_be_empty = plan, may_be_empty or everything
        self._seen: dict[int, int] = {}
        self._carrying: set[int] = set()
        self._observer = TreeObserver(self._current_roots(), plan=plan, reader=LightReader(), max_windows=KEPT_WINDOWS)
        self._ranks: dict[tuple[Key, int], RankWatch] = {}
        self._began = time.monotonic()
        self._memory_at, self._memory_took = self._began, 0.0
        self._times = cpu_times()
        self._states = self._observer.states
        self._ticks: dict[int, int] = {}
        self._checked_at = 0.0
        self._groups: frozenset[bytes] = frozenset()
        self._groups_of_files: frozenset[bytes] = frozenset()
        self._files: tuple[str, ...] = ()

    def start(self, seconds: float = START_SECONDS) -> WatchStatus:
        """Observe the ranks until each is proven or differs, at most for so long, and return how they are.

        Raises:
            RequestError: no process was started by the manager, and there is no plan.
        """
        self._observer.observe()
        self._times, self._states = cpu_times(), self._observer.states
        observe_for(self._observer, seconds, settled_seconds=CONFIRMING_WINDOWS * WINDOW_SECONDS * 0.9)
        if not self._observer.ranks() and self._plan is None and not self._may_be_empty:
            raise RequestError(self._no_placement())
        self._observe_memory()
        return self._status(observed=True)

    def _no_placement(self) -> str:
        names = ", ".join(map(str, self.roots))
        if any(state.environment is None for state in self._observer.states.values()):
            return (
                f"what process {names} and those below it were started with may not be read; run as their user or with"
                " CAP_SYS_PTRACE, or give the plan of the server with --plan FILE"
            )
        return (
            f"process {names} and those below it carry no placement ({PLACEMENT_VARIABLE}); give the plan of the server"
            " with --plan FILE"
        )

    def check(self) -> WatchStatus:
        """Observe all ranks once, repair what has drifted if requested, and return how they are.

        It waits until `LEAST_SECONDS` have passed since the last check.
        """
        time.sleep(max(0.0, self._checked_at + LEAST_SECONDS - time.monotonic()))
        return self._status(observed=False)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes whose end is worth a check: the roots and the ranks."""
        return tuple({*self._observer.roots, *(rank.pid for rank in self._ranks.values() if rank.pid is not None)})

    @property
    def has_ended(self) -> bool:
        """Whether no watched process lives any more."""
        return not self._everything and not self._observer.states

    def files(self) -> tuple[str, ...]:
        """Return the files that set the cpusets of the ranks: found again when a process is in another group."""
        if self._groups != self._groups_of_files:
            with DirectoryTree("/") as tree:
                found = [f"/{path}" for pid in self.pids for path in cpuset_files(tree, pid)]
            self._files, self._groups_of_files = tuple(dict.fromkeys(found)), self._groups
        return self._files

    def _current_roots(self) -> tuple[int, ...]:
        if not self._everything:
            return self.roots
        pids = process_ids()
        self._seen = {pid: self._seen.get(pid, 0) + 1 for pid in pids}
        # A process is seen before it executes its program, or binds itself later.
        looked_at = [pid for pid, count in self._seen.items() if count in FIRST_READINGS or count % LATER_READINGS == 0]
        self._carrying = {pid for pid in self._carrying if pid in self._seen and pid not in looked_at}
        self._carrying.update(filter(_carries_placement, looked_at))
        carrying = self._carrying
        # The topmost ones: what they have started is below them.
        return tuple(pid for pid in sorted(carrying) if parent_of(pid) not in carrying)

    def _status(self, *, observed: bool) -> WatchStatus:
        if not observed:
            if self._everything:
                self._observer.roots = list(self._current_roots())
            self._observer.observe()
        is_due = observed or self._memory_is_due
        if is_due:
            self._observe_memory()
        changes = [*self._checked()]
        if is_due:
            changes += self._memory_changes()
        changes += self._competitors()
        if self._repair:
            changes += self._repaired()
        self._checked_at = time.monotonic()
        now = self._checked_at - self._began
        ranks = [rank.status(time.monotonic() - self._memory_at) for rank in self._ranks.values()]
        ranks += self._missing()
        ranks.sort(key=lambda rank: (rank.rank, rank.local_rank, rank.pid or 0))
        return WatchStatus(now, tuple(ranks), tuple(change._replace(seconds=now) for change in changes))

    def _checked(self) -> Iterator[Change]:
        """Compare every rank with the last check."""
        members: dict[tuple[Key, int], Member] = {}
        for member in self._observer.ranks():
            if member.placement is not None:
                # Of several processes with one placement each is shown; the first one is the rank.
                first = (member.placement.key, 0)
                members[(member.placement.key, member.pid) if first in members else first] = member
        verdicts = {verdict.pid: verdict for verdict in self._observer.judge().ranks}
        around = self._surroundings([member.pid for member in members.values()])
        for at, rank in self._ranks.items():
            if at not in members:
                yield from rank.ended()
        for at, member in members.items():
            if member.placement is not None and member.pid in verdicts:
                rank = self._ranks.setdefault(at, RankWatch(member.placement))
                yield from rank.check(member, self._observer.timelines.get(member.pid), verdicts[member.pid], around)
        # A second process with the placement of a rank is no rank that is missing when it has ended.
        self._ranks = {at: rank for at, rank in self._ranks.items() if rank.pid is not None or at[1] == 0}

    def _surroundings(self, pids: Iterable[int]) -> Surroundings:
        before, states = self._times, self._states
        self._times, self._states = cpu_times(), self._observer.states
        by_group: dict[bytes, frozenset[int] | None] = {}
        cpusets = {}
        with DirectoryTree("/") as tree:
            online = frozenset(read_online(tree) or ())
            for pid in pids:
                group = tree.read(f"proc/{pid}/cgroup") or b""
                if group not in by_group:
                    cpus = cpuset_cpus(tree, pid)
                    by_group[group] = None if cpus is None else frozenset(cpus)
                cpusets[pid] = by_group[group]
        self._groups = frozenset(by_group)
        return Surroundings(before, self._times, own_seconds(states, self._states), online, cpusets)

    @property
    def _memory_is_due(self) -> bool:
        age = time.monotonic() - self._memory_at
        return age >= max(self._memory_seconds, MEMORY_PAUSE * self._memory_took)

    def _observe_memory(self) -> None:
        start = time.thread_time()
        self._observer.observe_memory()
        self._memory_took, self._memory_at = time.thread_time() - start, time.monotonic()

    def _memory_changes(self) -> Iterator[Change]:
        for rank in self._ranks.values():
            memory = None if rank.pid is None else self._observer.memory_of(rank.pid)
            yield from rank.remember_memory(memory, repair=self._repair)

    def _competitors(self) -> Iterator[Change]:
        """Name the processes that use the CPUs of ranks in two checks in a row."""
        for rank in self._ranks.values():
            if rank.has_competitor and not rank.crowded_checks:
                yield rank.competitors_ended()
        crowded = [rank for rank in self._ranks.values() if rank.crowded_checks and not rank.has_competitor]
        if not crowded:
            self._ticks = {}
        elif not self._ticks:
            self._ticks = ticks_of_others(self._observer.states.keys())
        else:
            for rank in crowded:
                if rank.crowded_checks > 1:
                    own = self._observer.states.keys()
                    yield rank.competitors(busiest_others(self._ticks, own, rank.placement.affinity))
            self._ticks = {}

    def _repaired(self) -> Iterator[Change]:
        """Plan again where the plan is not possible any more, or is again, and bind what has drifted."""
        groups: dict[frozenset[int], list[RankWatch]] = {}
        for rank in self._ranks.values():
            if rank.state is not None and rank.original.bound:
                groups.setdefault(rank.state.available, []).append(rank)
        for available, ranks in groups.items():
            yield from self._replanned(available, ranks)
        self._ranks = {(rank.placement.key, extra): rank for (_, extra), rank in self._ranks.items()}
        for rank in self._ranks.values():
            if rank.pid is not None and rank.needs_repair:
                yield from rank.repair()
                self._observer.forget(rank.pid)
            else:
                rank.settle()

    def _replanned(self, available: frozenset[int], ranks: list[RankWatch]) -> Iterator[Change]:
        replaced = [rank for rank in ranks if rank.placement != rank.original]
        if replaced and all(available.issuperset(rank.original.affinity) for rank in ranks):
            placements: Sequence[RankPlacement] = [rank.original for rank in ranks]
            text = "the plan is possible again: CPU {cpus}"
        elif not all(is_possible(rank.placement, available) for rank in ranks):
            placements = planned_again(load_topology(), [rank.original for rank in ranks], self._left(available, ranks))
            text = "CPUs of the plan are not available any more; planned again on CPU {cpus}"
        else:
            return
        for rank, placement in zip(ranks, placements):
            if rank.placement == placement:
                continue
            self._observer.replace(rank.original, placement)
            rank.replan(placement)
            stays = f"; its memory policy stays {rank.original.memory_policy}"
            policy = stays if rank.original.memory_policy != "none" else ""
            yield rank.change(REPLANNED, text.format(cpus=format_id_list(placement.affinity)) + policy)

    def _left(self, available: frozenset[int], ranks: list[RankWatch]) -> frozenset[int]:
        """Return the CPUs to plan within: a cpuset that was set for the server, else what is left of its own CPUs."""
        planned = frozenset(cpu for rank in ranks for cpu in rank.original.affinity)
        is_limited = any(rank.state is not None and rank.state.available < rank.state.online for rank in ranks)
        own = available if is_limited else planned & available
        others = frozenset(cpu for rank in self._ranks.values() if rank not in ranks for cpu in rank.placement.affinity)
        return (own - others) or available

    def _missing(self) -> Iterator[RankStatus]:
        """Yield the ranks of the plan without a process."""
        found = {rank.original.key for rank in self._ranks.values()}
        for placement in self._plan or ():
            if placement.key not in found:
                yield RankStatus(
                    placement.rank,
                    placement.local_rank,
                    None,
                    UNPROVEN,
                    planned_threads=len(placement.cpus),
                    differences=("no process of this rank was found",),
                )


def _carries_placement(pid: int) -> bool:
    """Return whether a process was started with a placement, or published one (setproctitle overwrites the former)."""
    try:
        environment = environment_of(pid)
    except OSError:
        return False
    if PLACEMENT_VARIABLE in environment.variables:
        return pid != os.getpid()
    return not environment.complete and memory_file(pid, PUBLISHED_NAME, 1) is not None
