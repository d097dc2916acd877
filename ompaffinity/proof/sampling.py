"""Observe process trees in windows, until every rank is proven or the time is over, and judge the ranks."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.errors import ProcessEndedError, RequestError
from ompaffinity.proc import processes_below
from ompaffinity.proof.activity import activity_between
from ompaffinity.proof.compare import verdict_of_timeline
from ompaffinity.proof.observe import observe_again, observe_process
from ompaffinity.proof.timeline import Timeline
from ompaffinity.proof.tree import Group, Member, groups_of, other_processes, placements_in_tree, shared_placement
from ompaffinity.proof.verdict import HOLDS, with_differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.observe import ProcessState
    from ompaffinity.proof.verdict import OtherProcess, RankVerdict

WINDOW_SECONDS = 0.5
MEMORY_WINDOWS = (2, 6, 20)
"""After so many observations, where the pages of a command are is observed, too."""
DETAIL_WINDOWS = 8
"""Once a process has loaded a runtime, its environment and libraries are read again after so many windows."""
LEAST_WINDOWS = 3
MAX_PROCESSES = 4096
"""More processes below the given ones are not a server."""


class Judgement(NamedTuple):
    """The verdicts on the ranks that were found, in their order, and the other processes."""

    ranks: tuple[RankVerdict, ...]
    others: tuple[OtherProcess, ...]


class TreeObserver:
    """Observes the processes below some roots, window by window.

    `given` are the placements of roots that were started with one here. `plan` are the placements that the ranks should
    have instead of those that they were started with. `may_end`: the processes may end before `observe_memory`.
    """

    def __init__(
        self,
        roots: Iterable[int] = (),
        *,
        given: Mapping[int, RankPlacement] | None = None,
        plan: Sequence[RankPlacement] | None = None,
        environments: Mapping[int, Mapping[str, str]] | None = None,
        may_end: bool = False,
    ) -> None:
        self.roots = list(dict.fromkeys(roots))
        self.given = dict(given or {})
        self.plan = plan
        self.environments = dict(environments or {})
        self.states: dict[int, ProcessState] = {}
        self._timelines: dict[int, Timeline] = {}
        self._busiest: dict[int, int] = {}
        self._cpu_seconds: dict[int, float] = {}
        self._windows = 0
        # Reading where the pages are takes long beside busy processes; what may end at any time cannot be read later.
        self._memory_windows = MEMORY_WINDOWS if may_end else ()
        self._seen: dict[int, tuple[int, int]] = {}
        self._memory: dict[int, ProcessState] = {}

    def observe(self) -> None:
        """Observe all processes once; the second and each later call ends a window.

        Raises:
            RequestError: a process may not be seen.
        """
        numbers = [*self.roots, *(pid for pid in processes_below(*self.roots) if pid not in (*self.roots, os.getpid()))]
        if len(numbers) > MAX_PROCESSES:
            raise RequestError(f"there are {len(numbers)} processes below; name the workers (at most {MAX_PROCESSES})")
        now = {}
        for pid in numbers:
            try:
                now[pid] = self._observed(pid)
            except ProcessEndedError:
                continue
        before = self.states
        self._windows += 1
        for pid in now:
            first = self._seen[pid][0] if pid in self._seen else self._windows
            self._seen[pid] = (first, self._windows)
        # Of the ended ones only those count that may have been a rank.
        ended = {pid: state for pid, state in before.items() if pid not in now and pid in self._timelines}
        self.states = {**{pid: state for pid, state in ended.items() if state.runtimes or state.engines}, **now}
        for pid, members in self._placements().items():
            earlier, state = before.get(pid), now.get(pid)
            if earlier is not None and state is not None and members is not None:
                self._add_window(earlier, state, members)
        if self._windows in self._memory_windows:
            self.observe_memory()

    @property
    def windows(self) -> int:
        """The number of windows that have ended."""
        return max(0, self._windows - 1)

    def _observed(self, pid: int) -> ProcessState:
        known = self.states.get(pid)
        if known is None or not known.runtimes or self._windows % DETAIL_WINDOWS == 0:
            return observe_process(pid, with_memory=False)
        return observe_again(known)

    def _add_window(self, before: ProcessState, after: ProcessState, placement: RankPlacement) -> None:
        activity = activity_between(before, after)
        if activity is None:
            return
        timeline = self._timelines.get(after.pid)
        if timeline is None or timeline.placement != placement:
            timeline = self._timelines[after.pid] = Timeline(placement)
        timeline.add(
            activity,
            has_openmp=bool(after.runtimes) or not after.runtimes_known,
            own_threads=any(engine.own_threads for engine in after.engines),
            with_caller=any(engine.caller_waits for engine in after.engines),
        )
        ran = sum(thread.run_seconds for thread in activity.threads)
        self._cpu_seconds[after.pid] = self._cpu_seconds.get(after.pid, 0.0) + ran
        self._busiest[after.pid] = max(self._busiest.get(after.pid, 0), len(activity.busy))

    def _placements(self) -> dict[int, RankPlacement | None]:
        """Return the placement to compare each process with: that of the plan, where there is one."""
        found = placements_in_tree(self.states, self.given)
        if self.plan is None:
            return found
        return {pid: self._planned(self.states[pid], placement) for pid, placement in found.items()}

    def _planned(self, state: ProcessState, started_as: RankPlacement | None) -> RankPlacement | None:
        """Return the plan's placement for a process: by its own placement, else by the CPUs of its threads."""
        plan = self.plan or ()
        if started_as is not None:
            for alike in (
                lambda other: (other.local_rank, other.cpus) == (started_as.local_rank, started_as.cpus),
                lambda other: other.cpus == started_as.cpus,
                lambda other: other.local_rank == started_as.local_rank,
            ):
                match = next(filter(alike, plan), None)
                if match is not None:
                    return match
        own = {cpu for thread in state.threads for cpu in thread.cpus}
        common = [len(own & set(placement.cpus)) - len(own - set(placement.affinity)) for placement in plan]
        best = max(range(len(plan)), key=lambda number: (common[number], -number), default=None)
        if best is not None and common[best] > 0 and common.count(common[best]) == 1:
            return plan[best]
        # Not bound, or to the CPUs of several ranks: the roots are the ranks in their order.
        at = self.roots.index(state.pid) if state.pid in self.roots else len(plan)
        return plan[at] if at < len(plan) else None

    def observe_memory(self) -> None:
        """Observe where the pages of the processes are that may be ranks."""
        for member in self._chosen():
            try:
                self._memory[member.pid] = observe_process(member.pid)
            except RequestError:
                continue

    def _members(self) -> list[Member]:
        placements = self._placements()
        return [
            Member(state, self._busiest.get(pid, 0), placements[pid], self._cpu_seconds.get(pid, 0.0))
            for pid, state in self.states.items()
        ]

    def _chosen(self) -> list[Member]:
        return [member for group in groups_of(self._members()) if group.placement for member in self._at_once(group)]

    def _at_once(self, group: Group) -> list[Member]:
        """Return the ranks of a group that ran at the same time as its latest one."""
        latest = max(group.ranks, key=lambda member: self._seen.get(member.pid, (0, 0))[1])
        start, _ = self._seen.get(latest.pid, (0, 0))
        return [member for member in group.ranks if self._seen.get(member.pid, (0, 0))[1] >= start]

    @property
    def proven(self) -> bool:
        """Whether all ranks that were found hold, and more observation cannot change that."""
        chosen = self._chosen()
        timelines = [self._timelines.get(member.pid) for member in chosen]
        expected = len(self.plan) if self.plan is not None else 1
        return len(chosen) >= expected and all(
            timeline is not None and not timeline.needs_all_windows and timeline.outcome().verdict == HOLDS
            for timeline in timelines
        )

    def differs_for(self, seconds: float) -> bool:
        """Whether a rank has differed for so long without interruption."""
        timelines = (self._timelines.get(member.pid) for member in self._chosen())
        return any(timeline is not None and timeline.differing_seconds >= seconds for timeline in timelines)

    def judge(self) -> Judgement:
        """Return the verdicts on what was observed."""
        ranks: list[RankVerdict] = []
        for group in groups_of(self._members()):
            if group.placement is None:
                continue
            members = self._at_once(group)
            for member in members:
                verdict = verdict_of_timeline(
                    self._timelines.get(member.pid) or Timeline(group.placement),
                    self._with_memory(member.state),
                    self._environment_of(member),
                )
                others = [other for other in members if other is not member]
                if others:
                    verdict = with_differences(verdict, [shared_placement(others[0], member, self.states)])
                ranks.append(verdict)
        ranks.sort(key=lambda rank: (rank.rank, rank.local_rank, rank.pid or 0))
        return Judgement(tuple(ranks), other_processes(self.states, (rank.pid for rank in ranks if rank.pid)))

    def _with_memory(self, state: ProcessState) -> ProcessState:
        seen = self._memory.get(state.pid)
        return state if seen is None else state._replace(memory=seen.memory, problems=seen.problems)

    def _environment_of(self, member: Member) -> dict[str, str] | None:
        pid: int | None = member.pid
        while pid is not None and pid not in self.environments:
            state = self.states.get(pid)
            pid = state.parent if state is not None and state.parent in self.states else None
        return None if pid is None else dict(self.environments[pid])


def observe_for(observer: TreeObserver, seconds: float, settled_seconds: float) -> float:
    """Observe until every rank is proven, a rank has differed for `settled_seconds`, or the time is over.

    Return for how many seconds.
    """
    start = time.monotonic()
    while True:
        observer.observe()
        if not observer.states:
            return 0.0
        passed = time.monotonic() - start
        # Beside busy processes an observation may take long itself: that is no reason to have none.
        is_over = passed + WINDOW_SECONDS / 2 > seconds and observer.windows >= min(LEAST_WINDOWS, seconds)
        if is_over or observer.proven or observer.differs_for(settled_seconds):
            return passed
        time.sleep(min(WINDOW_SECONDS, max(seconds - passed, 0.1)))
