"""The records of a verdict: per thread, per rank and over all ranks. No rules here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ompaffinity.messages import Message

HOLDS, DIFFERS, UNPROVEN = "holds", "differs", "unproven"
THREADS, MASK = "threads", "mask"
"""Levels: an OpenMP team, thread by thread; or the threads of a process without OpenMP, within its mask."""
HOLDS_VALUES = {HOLDS: True, DIFFERS: False, UNPROVEN: None}


class ThreadVerdict(NamedTuple):
    """One thread of the team: the mask that the plan requires and the actual one (None: not seen at work)."""

    thread: int
    thread_id: int | None
    place: tuple[int, ...]
    cpus: tuple[int, ...] | None
    busy_seconds: float | None = None
    delay_seconds: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether both masks are equal, None for a thread that was not seen."""
        return None if self.cpus is None else self.cpus == self.place


class Difference(NamedTuple):
    """Something that is not as the plan requires: of what, in words, and the likely cause (None: unknown)."""

    subject: str
    message: str
    cause: str | None = None


class RankVerdict(NamedTuple):
    """How one rank's process compares with its placement.

    `verdict` is ``"holds"``, ``"differs"`` or ``"unproven"``; `level` is ``"threads"`` or ``"mask"``. `team_known`: the
    process reported its OpenMP team; else the threads are identified by their masks and CPU time. `busy_threads` is the
    largest number of threads that were busy at the same time, None if none was observed. `delay_seconds` is the longest
    time that a busy thread waited for a CPU, per second of the window. `policy` is the main thread's as numa_maps words
    it, None where it is not known; `bytes_by_node` is where its pages are. `runtime_report` is where the OpenMP runtime
    reports its threads, if it was asked. `pid` is None where no process was found.
    """

    rank: int
    pid: int | None
    verdict: str
    level: str
    runtimes: tuple[str, ...]
    engines: tuple[str, ...]
    team_known: bool
    threads: tuple[ThreadVerdict, ...]
    busy_threads: int | None
    delay_seconds: float | None
    policy: str | None
    bytes_by_node: dict[int, int] | None
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    runtime_report: dict[int, tuple[int, ...]] | None = None
    local_rank: int = 0

    @property
    def holds(self) -> bool | None:
        """True or False; None where it is unproven."""
        return HOLDS_VALUES[self.verdict]

    def to_document(self) -> dict[str, Any]:
        """Return the verdict as plain values, ready for JSON."""
        return {
            "rank": self.rank,
            "local_rank": self.local_rank,
            "pid": self.pid,
            "verdict": self.verdict,
            "holds": self.holds,
            "level": self.level,
            "runtimes": list(self.runtimes),
            "engines": list(self.engines),
            "team_known": self.team_known,
            "threads": [
                {
                    "thread": thread.thread,
                    "thread_id": thread.thread_id,
                    "place": format_id_list(thread.place),
                    "cpus": None if thread.cpus is None else format_id_list(thread.cpus),
                    "holds": thread.holds,
                    "busy_seconds": thread.busy_seconds,
                    "delay_seconds": thread.delay_seconds,
                }
                for thread in self.threads
            ],
            "busy_threads": self.busy_threads,
            "delay_seconds": self.delay_seconds,
            "policy": self.policy,
            "bytes_by_node": None
            if self.bytes_by_node is None
            else {str(node): size for node, size in sorted(self.bytes_by_node.items())},
            "differences": [difference._asdict() for difference in self.differences],
            "notes": list(self.notes),
            "runtime_report": None
            if self.runtime_report is None
            else {str(thread): format_id_list(cpus) for thread, cpus in sorted(self.runtime_report.items())},
        }


def without_process(rank: int, differences: Iterable[Difference] = ()) -> RankVerdict:
    """Return the verdict on a rank of which no process was observed: unproven, unless there are differences."""
    found = tuple(differences)
    return RankVerdict(
        rank=rank,
        pid=None,
        verdict=DIFFERS if found else UNPROVEN,
        level=THREADS,
        runtimes=(),
        engines=(),
        team_known=False,
        threads=(),
        busy_threads=None,
        delay_seconds=None,
        policy=None,
        bytes_by_node=None,
        differences=found,
        notes=(),
    )


def with_differences(verdict: RankVerdict, differences: Iterable[Difference]) -> RankVerdict:
    """Return a verdict with more differences, these first: it differs if there are any."""
    found = (*differences, *verdict.differences)
    return verdict._replace(differences=found, verdict=DIFFERS if found else verdict.verdict)


def difference_in_words(rank: int, difference: Difference) -> str:
    """Return one sentence: ``rank 1, thread 3: may run on CPU 0-7, the plan requires 5; likely cause: ...``."""
    cause = f"; likely cause: {difference.cause}" if difference.cause else ""
    return f"rank {rank}, {difference.subject}: {difference.message}{cause}"


class OtherProcess(NamedTuple):
    """A process of the tree that is no rank: ``supervisor`` (of ranks), ``helper`` (of a rank) or ``other``.

    `role` is what it is where that is known, such as ``"vLLM scheduler"``.
    """

    pid: int
    parent: int
    kind: str
    role: str | None
    command: str

    def to_document(self) -> dict[str, Any]:
        """Return the process as plain values, ready for JSON."""
        return dict(self._asdict())


class Verdict(NamedTuple):
    """How all ranks compare, the other processes, for how long they were observed, and the plan's warnings."""

    ranks: tuple[RankVerdict, ...]
    messages: tuple[Message, ...] = ()
    others: tuple[OtherProcess, ...] = ()
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """The worst of the ranks: differs, unproven, holds; unproven where there is no rank."""
        found = {rank.verdict for rank in self.ranks}
        return next((verdict for verdict in (DIFFERS, UNPROVEN, HOLDS) if verdict in found), UNPROVEN)

    @property
    def holds(self) -> bool | None:
        """True or False; None where it is unproven."""
        return HOLDS_VALUES[self.verdict]

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.verify/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.verify/1",
            "verdict": self.verdict,
            "holds": self.holds,
            "seconds": round(self.seconds, 3),
            "ranks": [rank.to_document() for rank in self.ranks],
            "others": [process.to_document() for process in self.others],
            "warnings": [message._asdict() for message in self.messages],
        }
