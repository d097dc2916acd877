"""Keep checking the ranks of running servers against their placements: what changed, why, and how to repair it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.placement.document import PLACEMENT_VARIABLE
from ompaffinity.proof.drift import REPLANNED
from ompaffinity.proof.foreign import busiest_others, ticks_of_others
from ompaffinity.proof.observe import observe_process, require_proc
from ompaffinity.proof.rank_watch import RankWatch
from ompaffinity.proof.reading import LightReader
from ompaffinity.proof.replan import is_possible, planned_again
from ompaffinity.proof.roots import CarryingRoots, NamedRoots
from ompaffinity.proof.sampling import WINDOW_SECONDS, TreeObserver, observe_for
from ompaffinity.proof.surroundings import SurroundingsReader
from ompaffinity.proof.timeline import CONFIRMING_WINDOWS
from ompaffinity.proof.verdict import UNPROVEN
from ompaffinity.proof.watch_status import RankStatus, WatchStatus
from ompaffinity.topology.source import load_topology

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
CHECKS_PER_MEMORY = 12
"""... or after so many checks, where the caller chooses the interval ..."""
MEMORY_PAUSE = 1000
"""... and after so many times of the CPU time that reading takes."""
LEAST_SECONDS = 0.25
"""Two checks are at least so far apart: the kernel counts CPU time in steps of 10 ms."""
KEPT_CHECKS = 12
"""A rank that has ended is shown for so many checks where ranks come and go, and without end below a named server."""
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
        self._roots = CarryingRoots() if everything else NamedRoots(self.roots)
        self._everything, self._repair, self._memory_seconds = everything, repair, memory_seconds
        self._plan, self._may_be_empty = plan, may_be_empty or everything
        self._observer = TreeObserver(self.roots, plan=plan, reader=LightReader(), max_windows=KEPT_WINDOWS)
        self._around = SurroundingsReader()
        self._ranks: dict[tuple[Key, int], RankWatch] = {}
        self._began = self._memory_at = time.monotonic()
        self._memory_took = self._checked_at = 0.0
        self._ticks: dict[int, int] = {}

    def start(self, seconds: float = START_SECONDS) -> WatchStatus:
        """Observe the ranks until each is proven or differs, at most for so long, and return how they are.

        Raises:
            RequestError: no process was started by the manager, and there is no plan.
        """
        self._observe()
        observe_for(self._observer, seconds, settled_seconds=CONFIRMING_WINDOWS * WINDOW_SECONDS * 0.9)
        self._around.advance(self._observer.states)
        if not self._observer.ranks() and self._plan is None and not self._may_be_empty:
            raise RequestError(self._no_placement())
        return self._status(with_memory=True)

    def _no_placement(self) -> str:
        names = ", ".join(map(str, self.roots))
        states = self._observer.states.values()
        if not states:
            return f"process {names} has ended"
        if any(state.environment is None for state in states):
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
        self._observe()
        age = time.monotonic() - self._memory_at
        return self._status(with_memory=age >= max(self._memory_seconds, MEMORY_PAUSE * self._memory_took))

    def _observe(self) -> None:
        self._observer.roots = self._roots.current()
        self._observer.observe()
        self._around.advance(self._observer.states)

    @property
    def pids(self) -> tuple[int, ...]:
        """The live processes whose end is worth a check: the roots and the ranks."""
        ranks = (rank.pid for rank in self._ranks.values() if rank.pid is not None)
        return tuple({*self._observer.roots, *ranks} & self._observer.states.keys())

    @property
    def has_ended(self) -> bool:
        """Whether no watched process lives any more."""
        return not self._everything and not self._observer.states

    def files(self) -> tuple[str, ...]:
        """Return the files that set the cpusets of the ranks."""
        return self._around.files(self.pids)

    def _status(self, *, with_memory: bool) -> WatchStatus:
        changes = [*self._checked()]
        if with_memory:
            changes += self._memory_changes()
        changes += self._competitors()
        if self._repair:
            changes += self._repaired()
        for rank in self._ranks.values():
            if rank.is_stale and rank.pid is not None:
                self._observer.forget(rank.pid)
            rank.is_stale = False
        self._checked_at = time.monotonic()
        now = self._checked_at - self._began
        ranks = [rank.status(self._checked_at - self._memory_at) for rank in self._ranks.values()]
        ranks += self._missing()
        ranks.sort(key=lambda rank: (rank.rank, rank.local_rank, rank.pid or 0))
        return WatchStatus(now, tuple(ranks), tuple(change._replace(seconds=now) for change in changes))

    def _members(self) -> dict[tuple[Key, int], Member]:
        """Return the process of each rank. Of several with one placement each is shown; the first one is the rank.

        A process that was proven stays the rank while it lives, also when it idles beside a server that computes.
        """
        everything = {member.pid: member for member in self._observer.members() if member.key is not None}
        by_key: dict[Key, list[Member]] = {}
        for member in self._observer.ranks():
            if member.key is not None:
                by_key.setdefault(member.key, []).append(member)
        found = {}
        for key, ranks in by_key.items():
            members, rank = ranks, self._ranks.get((key, 0))
            current = None if rank is None or rank.pid is None else everything.get(rank.pid)
            if rank is not None and current is not None and current.key == key:
                others = [member for member in ranks if member.pid != current.pid]
                if len(others) < len(ranks):
                    members = [current, *others]
                elif rank.was_proven:
                    members = [current]
            found[key, 0] = members[0]
            found |= {(key, member.pid): member for member in members[1:]}
        return found

    def _checked(self) -> Iterator[Change]:
        """Compare every rank with the last check."""
        members = self._members()
        verdicts = {verdict.pid: verdict for verdict in self._observer.judge(list(members.values())).ranks}
        around = self._around.read([member.pid for member in members.values()], self._observer.roots)
        for at, rank in [*self._ranks.items()]:
            if at in members:
                continue
            # A second process with the placement of a rank is no rank that is missing when it has ended.
            if at[1] or (self._may_be_empty and rank.lost(KEPT_CHECKS)):
                del self._ranks[at]
            else:
                yield from rank.ended()
        for at, member in members.items():
            if member.placement is not None and member.pid in verdicts:
                original = self._observer.originals.get(at[0], member.placement)
                rank = self._ranks.setdefault(at, RankWatch(original, member.placement))
                yield from rank.check(member, self._observer.timelines.get(member.pid), verdicts[member.pid], around)

    def _memory_changes(self) -> Iterator[Change]:
        start = time.thread_time()
        self._observer.observe_memory()
        self._memory_took, self._memory_at = time.thread_time() - start, time.monotonic()
        for rank in self._ranks.values():
            memory = None if rank.pid is None else self._observer.memory_of(rank.pid)
            pages = None if memory is None else memory.bytes_by_node
            complete = memory is not None and memory.complete
            yield from rank.remember_memory(pages, complete=complete, repair=self._repair)

    def _competitors(self) -> Iterator[Change]:
        """Name the processes that use the CPUs of ranks in two checks in a row."""
        for rank in self._ranks.values():
            if rank.has_competitor and not rank.crowded_checks:
                yield rank.competitors_ended()
        crowded = [rank for rank in self._ranks.values() if rank.crowded_checks and not rank.has_competitor]
        if not crowded:
            self._ticks = {}
        elif not self._ticks:
            self._ticks = ticks_of_others(())
        else:
            for rank in crowded:
                if rank.crowded_checks > 1 and rank.pid is not None:
                    own = self._around.tree_of(rank.pid, self._observer.roots)
                    yield rank.competitors(busiest_others(self._ticks, own, rank.placement.affinity))
            self._ticks = {}

    def _repaired(self) -> Iterator[Change]:
        """Plan again where the plan is not possible any more, or is again, and bind what has drifted."""
        groups: dict[frozenset[int], list[RankWatch]] = {}
        for (_, second), rank in self._ranks.items():
            if rank.state is not None and rank.original.bound and not second:
                groups.setdefault(rank.state.available, []).append(rank)
        for available, ranks in groups.items():
            # In the order of the machine: each rank stays as near to its memory as it was.
            ranks.sort(key=lambda rank: (min(rank.original.affinity), rank.original.local_rank))
            yield from self._planned_back(available, ranks)
            yield from self._replanned(available, ranks)
        for rank in self._ranks.values():
            if rank.needs_repair:
                yield from rank.repair()
            else:
                rank.settle()

    def _planned_back(self, available: frozenset[int], ranks: list[RankWatch]) -> Iterator[Change]:
        """Return ranks to the original plan whose CPUs are all available again, and used by no other rank."""
        for rank in ranks:
            used = {cpu for other in ranks if other is not rank for cpu in other.placement.affinity}
            alone = available.issuperset(rank.original.affinity) and used.isdisjoint(rank.original.affinity)
            together = all(available.issuperset(other.original.affinity) for other in ranks)
            if rank.placement != rank.original and (together or alone):
                yield self._placed(rank, rank.original, "the plan is possible again")

    def _replanned(self, available: frozenset[int], ranks: list[RankWatch]) -> Iterator[Change]:
        """Plan ranks again that have threads without a CPU: on what is left of their own CPUs and on free ones.

        Only where these ranks have fewer CPUs than ranks, all of the ranks are planned again.
        """
        broken = [rank for rank in ranks if not is_possible(rank.placement, available)]
        if not broken:
            return
        is_limited = any(rank.state is not None and rank.state.available < rank.state.online for rank in ranks)
        planned = {cpu for rank in broken for cpu in rank.original.affinity}
        taken = {cpu for rank in self._ranks.values() if rank not in broken for cpu in rank.placement.affinity}
        left = (available if is_limited else available & planned) - taken
        if len(left) < len(broken):
            broken, left = ranks, available
        placements = planned_again(load_topology(), [rank.original for rank in broken], left)
        for rank, placement in zip(broken, placements):
            if rank.placement != placement:
                yield self._placed(rank, placement, "CPUs of the plan are not available any more; planned again")

    def _placed(self, rank: RankWatch, placement: RankPlacement, reason: str) -> Change:
        self._observer.replace(rank.original, placement)
        rank.replan(placement)
        rank.is_stale = True
        policy = rank.original.memory_policy
        stays = "" if policy == "none" else f"; its memory policy stays {policy}"
        return rank.change(REPLANNED, f"{reason} on CPU {format_id_list(placement.affinity)}{stays}")

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
