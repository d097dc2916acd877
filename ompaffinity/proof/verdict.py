"""The records of a verdict: per thread, per rank and over all ranks. No rules here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.ids import format_id_list

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.messages import Message


class ThreadVerdict(NamedTuple):
    """One OpenMP thread: what the plan says (`place`) and what the kernel says (`cpus`, None: no such thread)."""

    thread: int
    thread_id: int | None
    place: tuple[int, ...]
    cpus: tuple[int, ...] | None

    @property
    def holds(self) -> bool:
        """Whether both say the same."""
        return self.cpus == self.place


class Difference(NamedTuple):
    """Something that is not as the plan says: of what, in words, and the likely cause (None: unknown)."""

    subject: str
    message: str
    cause: str | None = None


class RankVerdict(NamedTuple):
    """How one rank's process compares with its placement.

    `team_known`: the process reported its OpenMP team; else the threads are identified by their masks. `policy`
    is the main thread's as numa_maps words it, None where it is not known; `bytes_by_node` is where its pages are.
    `runtime_says` is where the OpenMP runtime itself says that its threads are, if it was asked.
    """

    rank: int
    pid: int
    runtimes: tuple[str, ...]
    team_known: bool
    threads: tuple[ThreadVerdict, ...]
    policy: str | None
    bytes_by_node: dict[int, int] | None
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    runtime_says: dict[int, tuple[int, ...]] | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def to_document(self) -> dict[str, Any]:
        """Return the verdict as plain values, ready for JSON."""
        return {
            "rank": self.rank,
            "pid": self.pid,
            "holds": self.holds,
            "runtimes": list(self.runtimes),
            "team_known": self.team_known,
            "threads": [
                {
                    "thread": thread.thread,
                    "thread_id": thread.thread_id,
                    "place": format_id_list(thread.place),
                    "cpus": None if thread.cpus is None else format_id_list(thread.cpus),
                    "holds": thread.holds,
                }
                for thread in self.threads
            ],
            "policy": self.policy,
            "bytes_by_node": None
            if self.bytes_by_node is None
            else {str(node): size for node, size in sorted(self.bytes_by_node.items())},
            "differences": [difference._asdict() for difference in self.differences],
            "notes": list(self.notes),
            "runtime_says": None
            if self.runtime_says is None
            else {str(thread): format_id_list(cpus) for thread, cpus in sorted(self.runtime_says.items())},
        }


def difference_in_words(rank: int, difference: Difference) -> str:
    """Return one sentence: ``rank 1, thread 3: may run on CPU 0-7, the plan requires 5; likely cause: ...``."""
    cause = f"; likely cause: {difference.cause}" if difference.cause else ""
    return f"rank {rank}, {difference.subject}: {difference.message}{cause}"


class Verdict(NamedTuple):
    """How all ranks compare, and the plan's warnings."""

    ranks: tuple[RankVerdict, ...]
    messages: tuple[Message, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return all(rank.holds for rank in self.ranks)

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.verify/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.verify/1",
            "holds": self.holds,
            "ranks": [rank.to_document() for rank in self.ranks],
            "warnings": [message._asdict() for message in self.messages],
        }
