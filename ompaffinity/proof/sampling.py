"""Observe process trees in windows, until every rank is proven or the time is over, and judge the ranks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ompaffinity.errors import ProcessEndedError
from ompaffinity.proof.activity import activity_between
from ompaffinity.proof.compare import verdict_of_timeline
from ompaffinity.proof.observe import observe_memory
from ompaffinity.proof.reading import FullReader
from ompaffinity.proof.timeline import Timeline
from ompaffinity.proof.tree import Group, Member, groups_of, other_processes, placements_in_tree, shared_placement
from ompaffinity.proof.verdict import HOLDS, with_differences
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ompaffinity.bind.pages import MappedMemory
    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.observe import ProcessState
    from ompaffinity.proof.verdict import OtherProcess, RankVerdict

WINDOW_SECONDS = 0.5
MEMORY_WINDOWS = (2, 6, 20)
"""After so many observations, where the pages of a command are is observed, too."""
LEAST_WINDOWS = 3
FADING = 0.9
"""Of a process that is watched without end, its CPU time so far counts by this factor less with each window."""


class Judgement(NamedTuple):
    """The verdicts on the ranks that were found, in their order, and the other processes."""

    ranks: tuple[RankVerdict, ...]
    others: tuple[OtherProcess, ...]


class TreeObserver:
    """Observes the processes below some roots, window by window.

    `given` are the placements of roots that were started with one here. `plan` are the placements that the ranks should
    have instead of those that they were started with. `may_end`: the processes may end before `observe_memory`.
    `max_windows`: they are watched without end: so many windows of each are kept, and nothing of those that have ended.
    """

    def __init__(
        self,
        roots: Iterable[int] = (),
        *,
        given: Mapping[int, RankPlacement] | None = None,
        plan: Sequence[RankPlacement] | None = None,
        environments: Mapping[int, Mapping[str, str]] | None = None,
        may_end: bool = False,
        reader: FullReader | None = None,
        max_windows: int | None = None,
    ) -> None:
        self.roots = list(dict.fromkeys(roots))
        self.given = dict(given or {})
        self.plan = plan
        self.environments = dict(environments or {})
        self.states: dict[int, ProcessState] = {}
        self.timelines: dict[int, Timeline] = {}
        self._reader = FullReader() if reader is None else reader
        self._max_windows = max_windows
        self._assigned: dict[int, RankPlacement] = {}
        self._replaced: dict[tuple[int, tuple[int, ...]], RankPlacement] = {}
        self.originals: dict[tuple[int, tuple[int, ...]], RankPlacement] = {}
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
        now = {}
        for pid in self._reader.processes(self.roots):
            try:
                now[pid] = self._reader.read(pid, self.states.get(pid))
            except ProcessEndedError:
                continue
        before = self.states
        self._windows += 1
        for pid in now:
            first = self._seen[pid][0] if pid in self._seen else self._windows
            self._seen[pid] = (first, self._windows)
        self.states = {**self._kept({pid: state for pid, state in before.items() if pid not in now}), **now}
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

    def forget(self, pid: int) -> None:
        """Drop the windows of a process so far: its threads were bound to other CPUs."""
        self.timelines.pop(pid, None)

    def _kept(self, ended: dict[int, ProcessState]) -> dict[int, ProcessState]:
        """Return those of the processes that have ended which may have been a rank; forget the others."""
        if self._max_windows is None:
            may_be_ranks = (pid for pid, state in ended.items() if state.runtimes or state.engines)
            return {pid: ended[pid] for pid in may_be_ranks if pid in self.timelines}
        for pid in ended:
            for records in (self.timelines, self._assigned, self._busiest, self._cpu_seconds, self._seen, self._memory):
                records.pop(pid, None)
        return {}

    def _add_window(self, before: ProcessState, after: ProcessState, placement: RankPlacement) -> None:
        activity = activity_between(before, after)
        if activity is None:
            return
        timeline = self.timelines.get(after.pid)
        if timeline is None or timeline.placement != placement:
            timeline = self.timelines[after.pid] = Timeline(placement, self._max_windows)
        timeline.add(
            activity,
            has_openmp=bool(after.runtimes) or not after.runtimes_known,
            own_threads=any(engine.own_threads for engine in after.engines),
            with_caller=any(engine.caller_waits for engine in after.engines),
        )
        ran = sum(thread.run_seconds for thread in activity.threads)
        fading = 1.0 if self._max_windows is None else FADING
        self._cpu_seconds[after.pid] = fading * self._cpu_seconds.get(after.pid, 0.0) + ran
        self._busiest[after.pid] = max(self._busiest.get(after.pid, 0), len(activity.busy))

    def _placements(self) -> dict[int, RankPlacement | None]:
        """Return the placement to compare each process with: that of the plan, or one that has replaced it."""
        return {
            pid: placement and self._replaced.get(placement.key, placement)
            for pid, placement in self._original_placements().items()
        }

    def _original_placements(self) -> dict[int, RankPlacement | None]:
        found = placements_in_tree(self.states, self.given)
        if self.plan is not None:
            found = {pid: self._placement_of(self.states[pid], placement) for pid, placement in found.items()}
        return found

    def replace(self, original: RankPlacement, now: RankPlacement) -> None:
        """Compare the processes that have the `original` placement with another one from now on."""
        self._replaced[original.key] = now
        self.originals[original.key] = original

    def _placement_of(self, state: ProcessState, started_as: RankPlacement | None) -> RankPlacement | None:
        if self._max_windows is None:
            return self._planned(state, started_as)
        # Without end: a rank stays the one that it was, also when its threads get other CPUs.
        if state.pid not in self._assigned:
            planned = self._planned(state, started_as)
            if planned is None:
                return None
            self._assigned[state.pid] = planned
        return self._assigned[state.pid]

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
        for member in self.ranks():
            self._memory[member.pid] = observe_memory(member.state)

    def memory_of(self, pid: int) -> MappedMemory | None:
        """Return where the pages of a process were at the last `observe_memory`, None where that is unknown."""
        state = self._memory.get(pid)
        return None if state is None else state.memory

    def members(self) -> list[Member]:
        """Return all processes of the trees."""
        placements, originals = self._placements(), self._original_placements()
        found = []
        for pid, state in self.states.items():
            original = originals[pid]
            key = None if original is None else original.key
            busiest, seconds = self._busiest.get(pid, 0), self._cpu_seconds.get(pid, 0.0)
            found.append(Member(state, busiest, placements[pid], seconds, key))
        return found

    def ranks(self) -> list[Member]:
        """Return the processes that are ranks."""
        return [member for group in groups_of(self.members()) if group.placement for member in self._at_once(group)]

    def _at_once(self, group: Group) -> list[Member]:
        """Return the ranks of a group that ran at the same time as its latest one."""
        latest = max(group.ranks, key=lambda member: self._seen.get(member.pid, (0, 0))[1])
        start, _ = self._seen.get(latest.pid, (0, 0))
        return [member for member in group.ranks if self._seen.get(member.pid, (0, 0))[1] >= start]

    @property
    def proven(self) -> bool:
        """Whether all ranks that were found hold, and more observation cannot change that."""
        chosen = self.ranks()
        timelines = [self.timelines.get(member.pid) for member in chosen]
        expected = len(self.plan) if self.plan is not None else 1
        return len(chosen) >= expected and all(
            timeline is not None and not timeline.needs_all_windows and timeline.outcome().verdict == HOLDS
            for timeline in timelines
        )

    def differs_for(self, seconds: float) -> bool:
        """Whether a rank has differed for so long without interruption."""
        timelines = (self.timelines.get(member.pid) for member in self.ranks())
        return any(timeline is not None and timeline.differing_seconds >= seconds for timeline in timelines)

    def judge(self, members: Sequence[Member] | None = None) -> Judgement:
        """Return the verdicts on what was observed: of the ranks, or of these processes as ranks."""
        ranks: list[RankVerdict] = []
        by_key: dict[object, list[Member]] = {}
        for member in self.ranks() if members is None else members:
            by_key.setdefault(member.key, []).append(member)
        for group in by_key.values():
            for member in group:
                if member.placement is None:
                    continue
                verdict = verdict_of_timeline(
                    self.timelines.get(member.pid) or Timeline(member.placement),
                    self._with_memory(member.state),
                    self._environment_of(member),
                )
                others = [other for other in group if other is not member]
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
