"""One rank that is watched: what it was proven to be, what it is now, and the changes between two checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.proof import drift
from ompaffinity.proof.adopt import in_team_order, move_pages
from ompaffinity.proof.drift import Change, RankState, change_of_cpus, drifted_threads, kind_and_cause, verdict_of_rank
from ompaffinity.proof.foreign import foreign_time
from ompaffinity.proof.rank_memory import RankMemory
from ompaffinity.proof.repair import repaired
from ompaffinity.proof.timeline import Timeline
from ompaffinity.proof.verdict import DIFFERS, HOLDS, UNPROVEN, Difference
from ompaffinity.proof.watch_status import RankStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.drift import Mask
    from ompaffinity.proof.observe import ProcessState
    from ompaffinity.proof.surroundings import Surroundings
    from ompaffinity.proof.timeline import Outcome, Window
    from ompaffinity.proof.tree import Member
    from ompaffinity.proof.verdict import RankVerdict

FOREIGN_SHARE = 0.05
"""More CPU time than this part, taken by others on the CPUs of a rank in two checks, is reported."""
MAX_REPAIRS = 3
"""After so many repairs in a row repair stops: another program sets these CPUs, too."""
SUBJECTS = ("memory", "process")
"""Differences that are not about the threads of a rank."""


class RankWatch:
    """One rank: its current placement, its process, and what is counted since the watch began."""

    def __init__(self, original: RankPlacement, placement: RankPlacement) -> None:
        self.original, self.placement = original, placement
        self.state: RankState | None = None
        self.drifted: dict[int, Mask] = {}
        self._misplaced: dict[int, Mask] = {}
        self.crowded_checks = 0
        self.has_competitor = False
        self.is_stale = self._is_stolen = False
        self._pid: int | None = None
        self._start = 0
        self._ended: int | None = None
        self._checks_without = 0
        self._team: dict[int, Mask] = {}
        self._was_proven = False
        self._verdict: str | None = None
        self._reported: frozenset[tuple[int, Mask]] = frozenset()
        self._refused: tuple[str, ...] = ()
        self._differences: tuple[Difference, ...] = ()
        self._last: Window | None = None
        self._drifts = self._repairs = self._restarts = self._repairs_in_row = 0
        self._delay_share: float | None = None
        self._foreign_share: float | None = None
        self._delay_seconds = self._foreign_seconds = 0.0
        self._memory = RankMemory()

    @property
    def pid(self) -> int | None:
        """The process, None where it has ended."""
        return self._pid

    def change(self, kind: str, message: str, cause: str | None = None) -> Change:
        """Return a change of this rank."""
        verdict = self._verdict or UNPROVEN
        return Change(kind, self.placement.rank, self.placement.local_rank, self._pid, message, cause, verdict)

    def ended(self) -> Iterator[Change]:
        """Yield that the process has ended, once."""
        if self._pid is not None:
            self._verdict = UNPROVEN
            yield self.change(drift.RANK_ENDED, "the process has ended")
            self._ended, self._pid = self._pid, None
            self._forget()

    def _forget(self) -> None:
        self.state, self._team, self._was_proven, self._last = None, {}, False, None
        self.drifted, self._misplaced, self._reported, self._refused = {}, {}, frozenset(), ()
        self._repairs_in_row = 0
        self._memory = RankMemory()
        self._delay_share = self._foreign_share = None
        self.crowded_checks, self.has_competitor = 0, False

    def lost(self, checks: int) -> bool:
        """Count a check without a process; return whether there were more than so many in a row."""
        self._checks_without += 1
        return self._checks_without > checks

    def check(
        self, member: Member, timeline: Timeline | None, verdict: RankVerdict, around: Surroundings
    ) -> list[Change]:
        """Compare the process with what it was in the last check; return what has changed."""
        process = member.state
        changes = [*self._taken_over(process, around)]
        self._pid, self._ended, self._checks_without = process.pid, None, 0
        outcome = (timeline or Timeline(self.placement)).outcome()
        masks = {thread.thread_id: thread.cpus for thread in process.threads}
        self._learn_team(outcome, masks)
        now = RankState(
            process.pid,
            process.start_time,
            masks,
            self._team,
            around.cpusets.get(process.pid),
            (around.online or frozenset(self.placement.affinity)).union(*masks.values()),
        )
        self.drifted = drifted_threads(self.placement, now)
        is_known = bool(self._team) and now.team_lives
        self._misplaced = {} if is_known or outcome.verdict != DIFFERS else self._misplaced_team(timeline, now)
        before, self.state = self.state, now
        changes += self._changes(before, now, outcome, verdict)
        self._count(timeline, around)
        return changes

    def _taken_over(self, process: ProcessState, around: Surroundings) -> Iterator[Change]:
        """Yield that another process is the rank now."""
        before = self._pid
        if before is not None and (before != process.pid or self._start != process.start_time):
            lives = before in around.alive and before != process.pid
            self._forget()
            self._ended = None if lives else before
            if lives:
                self._pid, self._verdict = process.pid, UNPROVEN
                text = f"process {process.pid} computes for the rank now, not process {before}"
                yield self.change(drift.RANK_MOVED, text)
        if self._ended is not None:
            self._pid, self._verdict = process.pid, UNPROVEN
            self._restarts += 1
            text = f"process {self._ended} has ended, and process {process.pid} is the rank now"
            yield self.change(drift.RANK_RESTARTED, text)
        self._start = process.start_time

    @property
    def was_proven(self) -> bool:
        """Whether its process, the current one, was proven."""
        return self._was_proven

    def _misplaced_team(self, timeline: Timeline | None, now: RankState) -> dict[int, Mask]:
        """Return the places of a team that was never proven, if there are as many busy threads as planned."""
        busy = frozenset() if timeline is None else timeline.busy_in_confirming_windows
        if len(busy) != len(self.placement.places) or not busy <= now.masks.keys():
            return {}
        return dict(zip(in_team_order(now.pid, busy), self.placement.places))

    def _learn_team(self, outcome: Outcome, masks: Mapping[int, Mask]) -> None:
        """Remember the masks of a proven team; one that only its number proves may change its threads."""
        if outcome.verdict != HOLDS or outcome.window is None:
            return
        evidence = outcome.window.evidence
        team = {thread.thread_id: thread.cpus for thread in evidence.threads if thread is not None}
        if evidence.by_count:
            # Which of them is which is not known; where it was, before the team had to float, it is kept.
            team = self._team if self._team.keys() <= masks.keys() else {}
        if team.keys() <= masks.keys():
            self._team, self._was_proven = team, True

    def _changes(
        self, before: RankState | None, now: RankState, outcome: Outcome, verdict: RankVerdict
    ) -> Iterator[Change]:
        earlier = self._verdict
        others = tuple(found for found in verdict.differences if found.subject in SUBJECTS)
        self._verdict = verdict_of_rank(outcome, self.drifted, was_proven=self._was_proven, team_lives=now.team_lives)
        self._differences = verdict.differences if self._verdict == DIFFERS and not self.drifted else others
        if others:
            self._verdict = DIFFERS
        signature = frozenset((number, now.masks[number]) for number in self.drifted)
        moved = None if before is None else change_of_cpus(self.placement, before, now)
        if signature and signature != self._reported:
            kind, cause = kind_and_cause(self.placement, before, now, self.drifted)
            self._drifts += 1
            self._reported = signature
            yield self.change(kind, drift.drift_in_words(now, self.drifted), cause)
            return
        if moved is not None:
            self._drifts += moved[0] in drift.DRIFTS
            yield self.change(*moved)
        if self._reported and not signature:
            self._reported = frozenset()
            # What was seen meanwhile is over.
            self.is_stale = True
            if not others and self._verdict == DIFFERS:
                self._verdict = HOLDS if self._was_proven and now.team_lives else UNPROVEN
                self._differences = ()
            yield self.change(drift.VERDICT, "its threads have the planned CPUs again")
        elif earlier != self._verdict:
            yield self._verdict_change(outcome)

    def _verdict_change(self, outcome: Outcome) -> Change:
        if self._verdict == HOLDS:
            return self.change(drift.VERDICT, "every thread has its planned CPUs")
        if self._differences:
            first = self._differences[0]
            return self.change(drift.VERDICT, f"{first.subject}: {first.message}", first.cause)
        return self.change(drift.VERDICT, next(iter(outcome.notes), "no team was seen at work"))

    def _count(self, timeline: Timeline | None, around: Surroundings) -> None:
        windows = [] if timeline is None else timeline.windows
        for window in reversed(windows):
            if window is self._last:
                break
            delays = [thread.delay_seconds or 0.0 for thread in window.activity.active]
            self._delay_seconds += sum(delays)
        if windows and windows[-1] is not self._last:
            self._last = windows[-1]
            activity = self._last.activity
            self._delay_share = max((thread.delay_seconds or 0.0 for thread in activity.busy), default=0.0)
            self._delay_share /= activity.seconds
        own = around.own.get(self._pid or 0, {})
        found = foreign_time(self.placement.affinity, around.before, around.after, own)
        self._foreign_share = None if found is None else found.share
        if found is not None:
            self._foreign_seconds += found.seconds
            self._is_stolen = found.stolen > found.seconds / 2
            self.crowded_checks = self.crowded_checks + 1 if found.share > FOREIGN_SHARE else 0

    def competitors(self, names: str | None) -> Change:
        """Return the change that others use the CPUs of the rank: these processes, None where they are not seen."""
        self.has_competitor = True
        text = f"other processes took {self._foreign_share or 0.0:.0%} of the CPU time of its CPUs"
        if self._is_stolen:
            names = "the hypervisor ran other guests (steal)"
        unseen = "none that this user can see: interrupts, or processes of another container"
        return self.change(drift.COMPETITOR, text, names or unseen)

    def competitors_ended(self) -> Change:
        """Return the change that no other process uses much of the CPUs of the rank any more."""
        self.has_competitor = False
        return self.change(drift.COMPETITOR_ENDED, "no other process uses much of the CPU time of its CPUs any more")

    def remember_memory(
        self, bytes_by_node: dict[int, int] | None, *, complete: bool, repair: bool
    ) -> Iterator[Change]:
        """Take where the pages are now; yield if many of them have moved to other nodes.

        It is not `complete` where only a part could be read.
        """
        moved = self._memory.take(bytes_by_node, self.placement.nodes, complete=complete)
        if moved is None:
            return
        self._drifts += 1
        yield self.change(drift.MEMORY_MOVED, *moved)
        if repair and self._pid is not None and self.placement.memory_policy != "none":
            returned, message = move_pages(self._pid, self.placement)
            kind = drift.REPAIRED if returned else drift.REPAIR_REFUSED
            self._repairs += bool(returned)
            yield self.change(kind, message.message)

    def replan(self, placement: RankPlacement) -> None:
        """Take another placement: what the process has now has drifted from it."""
        self.placement = placement
        self._repairs_in_row, self._refused = 0, ()
        if self.state is None:
            return
        team = dict(zip(self._team, placement.places)) if len(self._team) == len(placement.places) else {}
        self._team = team
        self.state = self.state._replace(team=team)
        self._judge_again(self.state)

    def _judge_again(self, state: RankState) -> None:
        """Take the verdict on a state in which the placement or the masks have been changed here."""
        self.drifted = drifted_threads(self.placement, state)
        self._reported = frozenset((number, state.masks[number]) for number in self.drifted)
        self._verdict = DIFFERS if self.drifted else HOLDS if self._was_proven else UNPROVEN

    def repair(self) -> Iterator[Change]:
        """Bind again what has drifted; yield what was done, or why it could not be."""
        if self.state is None or self._repairs_in_row > MAX_REPAIRS:
            return
        if self._repairs_in_row == MAX_REPAIRS:
            self._repairs_in_row += 1
            text = f"its threads got other CPUs again after {MAX_REPAIRS} repairs in a row; they are left as they are"
            yield self.change(drift.REPAIR_STOPPED, text, "the program, or another tool, sets their CPUs as well")
            return
        # Of a team that was never proven the order is known from its threads alone.
        team = self._misplaced or self._team
        done = repaired(self.placement, self.state, {**self.drifted, **self._misplaced})
        given = {change.thread_id: change.cpus for change in done.binding.changes if change.pid == self.state.pid}
        if given:
            self._repairs += 1
            self._repairs_in_row += 1
            self.is_stale = True
            self._team = {number: given.get(number, mask) for number, mask in team.items()}
            self.state = self.state._replace(masks={**self.state.masks, **given}, team=self._team)
            self._judge_again(self.state)
            yield self.change(drift.REPAIRED, done.message)
        if done.refused and done.refused != self._refused:
            self._refused = done.refused
            yield self.change(drift.REPAIR_REFUSED, "; ".join(done.refused))

    def settle(self) -> None:
        """Count a check without drift: repairs that lasted are not in a row with later ones."""
        self._repairs_in_row = 0

    @property
    def needs_repair(self) -> bool:
        """Whether threads of a live process are not where the placement has them."""
        return self._pid is not None and bool(self.drifted or self._misplaced)

    def status(self, memory_age: float) -> RankStatus:
        """Return the status of the rank; where its pages are was read `memory_age` seconds ago."""
        pages = self._memory.split(self.placement.nodes)
        differences = [f"{found.subject}: {found.message}" for found in self._differences]
        if self.drifted and self.state is not None:
            differences.append(drift.drift_in_words(self.state, self.drifted))
        return RankStatus(
            rank=self.placement.rank,
            local_rank=self.placement.local_rank,
            pid=self._pid,
            verdict=self._verdict or UNPROVEN,
            busy_threads=None if self._last is None else len(self._last.activity.busy),
            planned_threads=len(self.placement.cpus),
            delay_share=self._delay_share,
            delay_seconds=self._delay_seconds,
            foreign_share=self._foreign_share,
            foreign_seconds=self._foreign_seconds,
            local_bytes=None if pages is None else pages.local,
            remote_bytes=None if pages is None else pages.remote,
            memory_age=None if pages is None else memory_age,
            drifts=self._drifts,
            repairs=self._repairs,
            restarts=self._restarts,
            differences=tuple(differences),
        )
