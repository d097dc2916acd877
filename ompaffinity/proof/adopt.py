"""Bind a process tree that runs already as the ranks of a plan: which of its processes are ranks, and which threads
are their OpenMP teams, is observed in a window.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.bind.deferred_signals import deferred_signals
from ompaffinity.bind.pages import mapped_memory, migrate_process_pages
from ompaffinity.bind.running import PASSES, Rebinding, bind_threads, take_back
from ompaffinity.errors import OMPAffinityError, RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.messages import (
    PAGES_OF_PROCESS_STAY,
    POLICY_NOT_SET,
    RUNNING_NOT_BOUND,
    TEAM_UNKNOWN,
    counted,
)
from ompaffinity.proc import parent_of, processes_below, start_time
from ompaffinity.proof.inspect import sampled_processes
from ompaffinity.proof.observe import NUMA_MAPS_SECONDS
from ompaffinity.proof.tree import Member, ancestors_of, groups_of
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from ompaffinity.messages import Message
    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.findings import InspectedProcess


class AdoptedRank(NamedTuple):
    """A process that was bound as a rank: its team's kernel ids in the order of its threads (none: unknown).

    `moved_bytes` are the bytes of its pages that were on other nodes and have been moved to those of the rank.
    """

    placement: RankPlacement
    pid: int
    team: tuple[int, ...]
    moved_bytes: int = 0

    def to_document(self) -> dict[str, Any]:
        """Return the rank as plain values, ready for JSON."""
        return {
            "rank": self.placement.rank,
            "local_rank": self.placement.local_rank,
            "pid": self.pid,
            "team": list(self.team),
            "affinity": format_id_list(self.placement.affinity),
            "moved_bytes": self.moved_bytes,
        }


class Adoption(NamedTuple):
    """What was bound: the ranks, the changes of their threads and of the other processes' threads, and messages."""

    ranks: tuple[AdoptedRank, ...]
    binding: Rebinding
    messages: tuple[Message, ...]


def adopt_processes(pids: Sequence[int], placements: Sequence[RankPlacement], seconds: float) -> Adoption:
    """Bind every thread of the processes `pids`, and of all processes below them, as the ranks of a plan.

    Each process is a rank, in the order given; or there is one, and the ranks are found in its tree: those that
    compute. A thread of an OpenMP team, seen at work for so many seconds, gets its place; all other threads of a rank
    and of the processes that it started get all CPUs of the rank. Other processes of the tree, such as a server above
    its ranks, get the CPUs that are reserved, or those of all ranks.

    Raises:
        RequestError: there is no such process, it may not be seen, or the tree has not as many ranks as the plan.
    """
    bound = [placement for placement in placements if placement.bound]
    if len(bound) < len(placements) or not bound:
        raise RequestError("the plan binds no CPUs (--bind none), so there is nothing to bind; omit --bind")
    roots = list(dict.fromkeys(pids))
    if len(roots) not in (1, len(bound)):
        raise RequestError(
            f"--pid names {counted(len(roots), 'process id')}, and the plan has {counted(len(bound), 'rank')}; name one"
            " process per rank in their order, or one server with all of them"
        )
    processes = sampled_processes(roots, seconds)
    ranks = _ranks(roots, processes, len(bound))
    binding = Rebinding()
    adopted: list[Adoption] = []
    try:
        # A signal is handled when all changes are known, and then they are taken back.
        with deferred_signals():
            for rank, placement in zip(ranks, bound):
                found = _adopted(processes[rank], placement)
                adopted.append(found)
                binding += found.binding
            cpus_of = _cpus_of_processes(processes, dict(zip(ranks, bound)))
            for pid in cpus_of.keys() - set(ranks):
                binding += bind_threads(pid, processes[pid].state.start_time, {}, cpus_of[pid])
            binding += _bind_new_processes(roots, cpus_of)
    except BaseException:
        take_back(binding.changes)
        raise
    messages = [message for found in adopted for message in found.messages]
    return Adoption(tuple(rank for found in adopted for rank in found.ranks), binding, (*messages, *refusals(binding)))


def _cpus_of_processes(
    processes: dict[int, InspectedProcess], ranks: dict[int, RankPlacement]
) -> dict[int, tuple[int, ...]]:
    """Return the CPUs of each process of a tree: those of its rank, or of the rank that has started it."""
    shared = _cpus_above([*ranks.values()])
    found = {}
    for pid in processes:
        owner = pid if pid in ranks else next((rank for rank in ranks if _is_below(pid, rank, processes)), None)
        found[pid] = shared if owner is None else ranks[owner].affinity
    return found


def _cpus_above(placements: Sequence[RankPlacement]) -> tuple[int, ...]:
    """Return the CPUs of the processes that are no rank and below none: the reserved ones, or those of all ranks."""
    reserved = {cpu for placement in placements for cpu in placement.helper_cpus}
    if reserved and len(placements) > 1:
        return tuple(sorted(reserved))
    return tuple(sorted({cpu for placement in placements for cpu in placement.affinity}))


def _bind_new_processes(roots: Sequence[int], cpus_of: dict[int, tuple[int, ...]]) -> Rebinding:
    """Bind what the tree has started since it was observed like its parent: it may have had the parent's old mask."""
    binding = Rebinding()
    for _ in range(PASSES):
        new = [pid for pid in processes_below(*roots) if pid not in cpus_of and pid != os.getpid()]
        if not new:
            break
        for pid in new:
            cpus_of[pid] = cpus_of.get(parent_of(pid), cpus_of[roots[0]])
            started = start_time(pid)
            if started is not None:
                binding += bind_threads(pid, started, {}, cpus_of[pid])
    return binding


def _ranks(roots: list[int], processes: dict[int, InspectedProcess], count: int) -> list[int]:
    """Return the ids of the processes that are the ranks, in the order of the ranks.

    Raises:
        RequestError: there are more or fewer than `count`.
    """
    expected = 1 if len(roots) == count else count
    found = []
    for root in roots:
        ranks = _ranks_below(root, processes)
        if len(ranks) != expected:
            raise _wrong_number(root, ranks, expected)
        found += ranks
    return found


def _wrong_number(root: int, ranks: list[int], count: int) -> RequestError:
    found = f"{counted(len(ranks), 'rank')} (process {format_id_list(ranks)})"
    return RequestError(
        f"the tree of process {root} has {found}, and the plan has {counted(count, 'rank')} for it; change --tp, or"
        " name the worker of each rank with --pid"
    )


def _ranks_below(root: int, processes: dict[int, InspectedProcess]) -> list[int]:
    members = [
        # What a process was started with does not matter: it gets a placement now.
        Member(process.state._replace(placement=None), len(process.busy_threads), None, process.cpu_seconds)
        for pid, process in processes.items()
        if pid == root or _is_below(pid, root, processes)
    ]
    return sorted(
        (member.pid for group in groups_of(members) for member in group.ranks),
        key=lambda pid: (processes[pid].state.start_time, pid),
    )


def _is_below(pid: int, root: int, processes: dict[int, InspectedProcess]) -> bool:
    return root in ancestors_of(pid, {other: process.state for other, process in processes.items()})


def _adopted(process: InspectedProcess, placement: RankPlacement) -> Adoption:
    """Bind the process of a rank, and move its memory."""
    pid, busy, planned = process.state.pid, process.busy_threads, len(placement.cpus)
    team: tuple[int, ...] = ()
    messages: list[Message] = []
    if len(busy) == planned:
        team = in_team_order(pid, busy)
    elif len(set(placement.places)) > 1 or len(busy) > planned:
        messages.append(
            TEAM_UNKNOWN(
                rank=placement.rank,
                pid=pid,
                busy=counted(len(busy), "busy thread"),
                planned=planned,
                cpus=format_id_list(placement.affinity),
            )
        )
    binding = bind_threads(pid, process.state.start_time, dict(zip(team, placement.places)), placement.affinity)
    moved = 0
    if placement.memory_policy != "none" and placement.nodes:
        moved, message = move_pages(pid, placement)
        messages.append(message)
    return Adoption((AdoptedRank(placement, pid, team, moved),), binding, tuple(messages))


def in_team_order(pid: int, threads: Iterable[int]) -> tuple[int, ...]:
    """Return the kernel ids of a team's threads in their order: a runtime starts one after the other, main first."""
    return tuple(sorted(threads, key=lambda number: (number != pid, number)))


def move_pages(pid: int, placement: RankPlacement) -> tuple[int, Message]:
    """Move the pages of a process to the nodes of its rank; return how many bytes, and the message about it."""
    nodes = format_id_list(placement.nodes)
    try:
        before = mapped_memory(pid, NUMA_MAPS_SECONDS).bytes_by_node
        away = sorted(before.keys() - set(placement.nodes))
        if away:
            migrate_process_pages(away, placement.nodes, pid)
        after = mapped_memory(pid, NUMA_MAPS_SECONDS).bytes_by_node if away else before
    except (OSError, OMPAffinityError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return 0, PAGES_OF_PROCESS_STAY(pid=pid, nodes=nodes, reason=reason)
    left = sum(size for node, size in after.items() if node not in placement.nodes)
    moved = max(0, sum(size for node, size in before.items() if node not in placement.nodes) - left)
    return moved, POLICY_NOT_SET(pid=pid, moved=moved / 2**20, left=left / 2**20, nodes=nodes)


def refusals(binding: Rebinding) -> Iterator[Message]:
    """Yield a warning for each reason for which threads of a process keep their CPUs."""
    by_reason: dict[tuple[int, str], int] = {}
    for thread in binding.refused:
        by_reason[thread.pid, thread.reason] = by_reason.get((thread.pid, thread.reason), 0) + 1
    for (pid, reason), count in by_reason.items():
        yield RUNNING_NOT_BOUND(count=counted(count, "thread"), pid=pid, reason=reason)
