"""The windows of one process, and the verdict that they lead to. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.messages import counted
from ompaffinity.proof.evidence import Evidence, evidence_of
from ompaffinity.proof.verdict import DIFFERS, HOLDS, UNPROVEN, Difference
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.activity import Activity

PINNED_WINDOWS = 2
"""So many windows prove a team whose threads have a place each ..."""
COUNTED_SECONDS = 1.9
"""... and so many seconds one that is proven by the number of its threads alone."""
CONFIRMING_WINDOWS = 2
"""A difference counts when it was seen in so many windows one after the other."""
SERIAL_SECONDS = 3.0
"""A program that computes for so long with fewer threads than planned has a smaller team."""


class Window(NamedTuple):
    """A window and what it proves."""

    activity: Activity
    evidence: Evidence


class Outcome(NamedTuple):
    """The verdict so far, the window that shows it (None: there is none), its differences and notes.

    `is_serial`: it differs only because it computed with fewer threads than planned.
    """

    verdict: str
    window: Window | None
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    is_serial: bool = False


class Timeline:
    """Collects the windows of a process with a placement, at most the last `max_windows` (None: all)."""

    def __init__(self, placement: RankPlacement, max_windows: int | None = None) -> None:
        self.placement = placement
        self._max_windows = max_windows
        self.windows: list[Window] = []

    def add(
        self, activity: Activity, *, has_openmp: bool, own_threads: bool = False, with_caller: bool = False
    ) -> None:
        """Add the next window; the arguments are those of `evidence_of`."""
        evidence = evidence_of(
            self.placement, activity, has_openmp=has_openmp, own_threads=own_threads, with_caller=with_caller
        )
        self.windows.append(Window(activity, evidence))
        if self._max_windows is not None:
            del self.windows[: -self._max_windows]

    @property
    def busy_threads(self) -> int:
        """The largest number of busy threads in a window."""
        return max((window.evidence.busy for window in self.windows), default=0)

    @property
    def busy_in_confirming_windows(self) -> frozenset[int]:
        """The kernel ids of the threads that were busy in each of the last windows."""
        last = self.windows[-CONFIRMING_WINDOWS:]
        busy = [frozenset(thread.thread_id for thread in window.activity.busy) for window in last]
        return frozenset.intersection(*busy) if len(busy) == CONFIRMING_WINDOWS else frozenset()

    @property
    def needs_all_windows(self) -> bool:
        """Whether only watching to the end can prove it: a single thread is also what a program starts with."""
        return len(self.placement.cpus) <= 1

    @property
    def differing_seconds(self) -> float:
        """For how long it has differed without interruption."""
        seconds = 0.0
        for window in reversed(self.windows):
            if not window.evidence.differences:
                break
            seconds += window.activity.seconds
        return seconds

    def outcome(self) -> Outcome:
        """Return the verdict on what was seen so far."""
        last = self._last_confirmed(lambda window: bool(window.evidence.differences))
        contradicted = self._last_confirmed(self._contradicts)
        later = self.windows if contradicted is None else self.windows[contradicted + 1 :]
        proving = [window for window in later if window.evidence.complete]
        if _is_enough(proving):
            return Outcome(HOLDS, proving[-1], notes=proving[-1].evidence.notes)
        if last is not None:
            window = self.windows[last]
            return Outcome(DIFFERS, window, window.evidence.differences, window.evidence.notes)
        serial = self._serial_difference()
        if serial is not None:
            return Outcome(DIFFERS, self.windows[-1], (serial,), is_serial=True)
        return self._unproven()

    def _contradicts(self, window: Window) -> bool:
        """Return whether a window differs, or has more busy threads than a team that only their number proves."""
        evidence = window.evidence
        too_many = evidence.by_count and not evidence.complete and evidence.busy > len(self.placement.cpus)
        return bool(evidence.differences) or too_many

    def _last_confirmed(self, is_so: Callable[[Window], bool]) -> int | None:
        """Return the last window of which this is so, and of the window before it, too."""
        for number in range(len(self.windows) - 1, CONFIRMING_WINDOWS - 2, -1):
            if all(is_so(window) for window in self.windows[number - 1 : number + 1]):
                return number
        return None

    def _serial_difference(self) -> Difference | None:
        """Return the difference that the program computed, to the end, with fewer threads than planned."""
        planned, seconds, most = len(self.placement.cpus), 0.0, 0
        for window in reversed(self.windows):
            active = len(window.activity.active)
            if not (window.activity.saturated and window.activity.steady) or active >= planned:
                break
            seconds, most = seconds + window.activity.seconds, max(most, active)
        if not self.placement.bound or seconds < SERIAL_SECONDS:
            return None
        text = f"{counted(most, 'thread')} used CPU time in {seconds:.0f} seconds of computing, the plan has {planned}"
        return Difference("team", text)

    def _unproven(self) -> Outcome:
        seen = max(self.windows, key=lambda window: window.evidence.busy, default=None)
        if seen is None or seen.evidence.idle:
            return Outcome(UNPROVEN, seen, notes=("no thread was busy while it was observed",))
        if seen.evidence.notes:
            return Outcome(UNPROVEN, seen, notes=seen.evidence.notes)
        planned = len(self.placement.cpus)
        note = f"{counted(seen.evidence.busy, 'busy thread')} seen, the plan has {planned}"
        if seen.evidence.busy == planned:
            note = "its team was not seen at work for long enough"
        return Outcome(UNPROVEN, seen, notes=(note,))


def _is_enough(proving: list[Window]) -> bool:
    """Return whether these windows prove a team, by the level of the last one.

    An import or the loading of a model keeps one thread busy, as a team of one does: such windows count for nothing.
    """
    if not proving:
        return False
    last = proving[-1].evidence
    alike = [window for window in proving if window.evidence.level == last.level]
    if not last.by_count:
        return len(alike) >= PINNED_WINDOWS
    return sum(window.activity.seconds for window in alike if window.activity.steady) >= COUNTED_SECONDS
