"""How the threads of a rank have drifted from its placement since they were proven, and why. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted
from ompaffinity.proof.verdict import DIFFERS, HOLDS, UNPROVEN
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.timeline import Outcome

Mask = tuple[int, ...]

VERDICT = "verdict"
CPUSET_CHANGED, CPUS_OFFLINE, CPUS_ONLINE = "cpuset-changed", "cpus-offline", "cpus-online"
THREADS_REBOUND, TEAM_REPINNED = "threads-rebound", "team-repinned"
RANK_RESTARTED, RANK_MOVED, RANK_ENDED = "rank-restarted", "rank-moved", "rank-ended"
COMPETITOR, COMPETITOR_ENDED, MEMORY_MOVED = "competitor", "competitor-ended", "memory-moved"
REPAIRED, REPLANNED, REPAIR_REFUSED, REPAIR_STOPPED = "repaired", "replanned", "repair-refused", "repair-stopped"
DRIFTS = (CPUSET_CHANGED, CPUS_OFFLINE, THREADS_REBOUND, TEAM_REPINNED, MEMORY_MOVED)
"""The changes that count as drift."""


class RankState(NamedTuple):
    """The threads of a rank's process at one time, and where its control group and the machine let them run.

    `masks` are {kernel id: CPUs}. `team` are the masks of the team's threads when it was proven, empty where it was
    not. `cpuset` is that of the control group, None where it is unknown.
    """

    pid: int
    start_time: int
    masks: Mapping[int, Mask]
    team: Mapping[int, Mask]
    cpuset: frozenset[int] | None
    online: frozenset[int]

    @property
    def available(self) -> frozenset[int]:
        """The CPUs that are online and in the cpuset."""
        return self.online if self.cpuset is None else self.online & self.cpuset

    @property
    def team_lives(self) -> bool:
        """Whether every thread of the proven team still lives."""
        return self.team.keys() <= self.masks.keys()


class Change(NamedTuple):
    """One thing that changed: a stable kind, the rank, a sentence, and the likely cause (None: unknown).

    `verdict` is the rank's afterwards; `seconds` is the time since the watch began.
    """

    kind: str
    rank: int
    local_rank: int
    pid: int | None
    message: str
    cause: str | None = None
    verdict: str = UNPROVEN
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return the change in one line: ``rank 1 (process 12): MESSAGE; cause: CAUSE [KIND]``."""
        process = "" if self.pid is None else f" (process {self.pid})"
        cause = "" if self.cause is None else f"; cause: {self.cause}"
        return f"rank {self.rank}{process} {self.verdict}: {self.message}{cause} [{self.kind}]"

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.change/1`` document: plain values, ready for JSON."""
        return {"schema": "ompaffinity.change/1"} | self._asdict() | {"seconds": round(self.seconds, 3)}


def drifted_threads(placement: RankPlacement, state: RankState) -> dict[int, Mask]:
    """Return the threads with other CPUs than planned, and those that they should have: {kernel id: CPUs}.

    A thread of the proven team must have the mask that it had then, any other one must stay within the rank's CPUs.
    CPUs that are not available do not count.
    """
    if not placement.bound:
        return {}
    affinity, available = frozenset(placement.affinity), state.available
    found = {}
    for number, cpus in state.masks.items():
        required = state.team.get(number)
        if required is None:
            if not affinity.issuperset(cpus):
                found[number] = placement.affinity
        elif cpus != required and available.intersection(cpus) != (available.intersection(required) or None):
            found[number] = required
    return found


def verdict_of_rank(outcome: Outcome, drifted: Mapping[int, Mask], *, was_proven: bool, team_lives: bool) -> str:
    """Return the verdict on a rank that is watched.

    A team that was proven and idles unchanged still holds; one whose threads have ended must be proven again.
    """
    if drifted or (outcome.verdict == DIFFERS and not (was_proven and outcome.is_serial)):
        return DIFFERS
    return HOLDS if team_lives and (was_proven or outcome.verdict == HOLDS) else UNPROVEN


def drift_in_words(state: RankState, drifted: Mapping[int, Mask]) -> str:
    """Return which threads have which CPUs: the first one, and how many more."""
    number, required = next(iter(drifted.items()))
    rest = len(drifted) - 1
    more = f" (and {counted(rest, 'more thread')} like it)" if rest else ""
    return (
        f"thread {number} may run on CPU {format_id_list(state.masks[number])}, the plan requires"
        f" {format_id_list(required)}{more}"
    )


def kind_and_cause(
    placement: RankPlacement, before: RankState | None, now: RankState, drifted: Mapping[int, Mask]
) -> tuple[str, str]:
    """Return the kind of a drift and its likely cause: what the kernel changed comes first, then what programs set."""
    planned = frozenset(placement.affinity)
    offline = planned - now.online
    if offline:
        return CPUS_OFFLINE, f"CPU {format_id_list(offline)} is offline"
    if before is not None and before.cpuset != now.cpuset:
        return CPUSET_CHANGED, cpuset_in_words(before.cpuset, now.cpuset)
    if now.cpuset is not None and not planned <= now.cpuset:
        text = f"the cpuset of its control group ({format_id_list(now.cpuset)}) lacks CPU"
        return CPUSET_CHANGED, f"{text} {format_id_list(planned - now.cpuset)}"
    earlier = {} if before is None else before.masks
    if before is None:
        return THREADS_REBOUND, "its CPUs were set before it was observed"
    known = {number for number in drifted if number in earlier}
    if not known:
        return TEAM_REPINNED, "the program started threads and pinned them itself"
    if len({now.masks[number] for number in drifted}) > 1:
        return TEAM_REPINNED, "the program pinned the threads of its pool again (sched_setaffinity)"
    if len(now.masks) > 1 and len(set(now.masks.values())) == 1:
        return THREADS_REBOUND, "the CPUs of all its threads were set from outside (taskset -a -p)"
    subject = "this thread" if len(drifted) == 1 else "these threads"
    return THREADS_REBOUND, f"the CPUs of {subject} were set (taskset -p, or sched_setaffinity in the program)"


def cpuset_in_words(before: frozenset[int] | None, now: frozenset[int] | None) -> str:
    """Return how the cpuset of a control group changed."""
    old, new = ("unknown" if cpuset is None else format_id_list(cpuset) for cpuset in (before, now))
    return f"the cpuset of its control group changed from {old} to {new}"


def change_of_cpus(placement: RankPlacement, before: RankState, now: RankState) -> tuple[str, str, str] | None:
    """Return the kind, the sentence and the cause of a change of the available CPUs of a rank; None for none."""
    planned = frozenset(placement.affinity)
    lost, gained = planned & (before.available - now.available), planned & (now.available - before.available)
    if not lost and not gained:
        return None
    is_cpuset = before.cpuset != now.cpuset
    cause = cpuset_in_words(before.cpuset, now.cpuset) if is_cpuset else "CPU hotplug"
    if lost:
        kind = CPUSET_CHANGED if is_cpuset else CPUS_OFFLINE
        return kind, f"CPU {format_id_list(lost)} of the rank is not available any more", cause
    kind = CPUSET_CHANGED if is_cpuset else CPUS_ONLINE
    return kind, f"CPU {format_id_list(gained)} of the rank is available again", cause
