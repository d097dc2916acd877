"""Bind the threads of processes that run already, from outside, and take that back: sched_setaffinity(2).

The kernel permits it to the same user, or with CAP_SYS_NICE. A memory policy is a thread's own (set_mempolicy(2)) and
cannot be set from outside; pages can be moved (migrate_pages(2)).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from ompaffinity.bind.affinity import set_mask
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.placement.fields import WHOLE, DocumentReader, Source
from ompaffinity.proc import mask_of, start_time, thread_ids, thread_name
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ompaffinity.placement.fields import Row

SCHEMA = "ompaffinity.bind/1"
PASSES = 8
"""A process may start threads while it is bound: the most passes over its threads, until there are no new ones."""
MAX_PID = 2**31 - 1
MAX_TICKS = 2**63 - 1
MAX_NAME = 64
BOOT_ID = "/proc/sys/kernel/random/boot_id"
NOT_PERMITTED = "it is another user's; run as that user, or with CAP_SYS_NICE"


class ThreadChange(NamedTuple):
    """A thread that got other CPUs: what it had `before`, and the `cpus` that it has now.

    `start_time` is in clock ticks since boot: the number of a thread is used again later, both together are not.
    """

    pid: int
    thread_id: int
    start_time: int
    name: str
    before: tuple[int, ...]
    cpus: tuple[int, ...]

    def to_document(self) -> dict[str, Any]:
        """Return the change as plain values, ready for JSON."""
        return self._asdict() | {"before": format_id_list(self.before), "cpus": format_id_list(self.cpus)}


class RefusedThread(NamedTuple):
    """A thread that keeps its CPUs, and the reason."""

    pid: int
    thread_id: int
    name: str
    reason: str


class Rebinding(NamedTuple):
    """What was changed of running processes, and what keeps its CPUs."""

    changes: tuple[ThreadChange, ...] = ()
    refused: tuple[RefusedThread, ...] = ()

    def __add__(self, other: object) -> Rebinding:
        if not isinstance(other, Rebinding):
            return NotImplemented
        return Rebinding((*self.changes, *other.changes), (*self.refused, *other.refused))


def bind_threads(
    pid: int,
    started: int,
    masks: Mapping[int, tuple[int, ...]],
    others: tuple[int, ...],
    *,
    keep_narrower: bool = False,
) -> Rebinding:
    """Bind the threads of a process to the CPUs in `masks`, {kernel id: CPUs}, and all other threads to `others`.

    `started` is its start time in clock ticks since boot; another process that has the number now is left alone.
    Threads that it starts meanwhile are bound as well. Threads that have their CPUs already are in no list. With
    `keep_narrower` other threads that are within `others` already stay as they are.
    """
    seen: set[int] = set()
    changes: list[ThreadChange] = []
    refused: list[RefusedThread] = []
    for _ in range(PASSES):
        if start_time(pid) != started:
            break
        try:
            new = [number for number in thread_ids(pid) if number not in seen]
        except OSError:
            break
        if not new:
            break
        seen.update(new)
        for number in new:
            if keep_narrower and number not in masks and (mask_of(number) or set()) <= set(others):
                continue
            found = _bind_thread(pid, number, masks.get(number, others))
            if isinstance(found, ThreadChange):
                changes.append(found)
            elif found is not None:
                refused.append(found)
    return Rebinding(tuple(changes), tuple(refused))


def take_back(changes: Iterable[ThreadChange]) -> Rebinding:
    """Give threads the CPUs that they had before, the last change first.

    A thread is restored only if it is the same one and still has the CPUs that it got.
    """
    restored: list[ThreadChange] = []
    refused: list[RefusedThread] = []
    for change in reversed(list(changes)):
        is_same = start_time(change.pid, change.thread_id) == change.start_time
        if not is_same or mask_of(change.thread_id) != set(change.cpus):
            continue
        found = _bind_thread(change.pid, change.thread_id, change.before)
        if isinstance(found, ThreadChange):
            restored.append(found)
        elif found is not None:
            refused.append(found)
    return Rebinding(tuple(restored), tuple(refused))


def _bind_thread(pid: int, number: int, cpus: tuple[int, ...]) -> ThreadChange | RefusedThread | None:
    """Bind a thread; return the change, why there is none, or None where it has these CPUs already or has ended."""
    started, before, name = start_time(pid, number), mask_of(number), thread_name(pid, number)
    if started is None or before is None or before == set(cpus):
        return None
    reason = set_mask(number, cpus)
    if reason is None:
        return ThreadChange(pid, number, started, name, tuple(sorted(before)), tuple(sorted(cpus)))
    if start_time(pid, number) != started:
        return None
    if reason == os.strerror(errno.EPERM):
        reason = NOT_PERMITTED
    elif reason == os.strerror(errno.EINVAL):
        reason = f"none of CPU {format_id_list(cpus)} is online and in the cpuset of its control group"
    return RefusedThread(pid, number, name, reason)


def boot_id() -> str:
    """Return what distinguishes this run of the kernel from others, "" where it is unknown (random(4))."""
    try:
        with open(BOOT_ID, encoding="ascii", errors="replace") as file:
            return file.read(MAX_NAME).strip()
    except OSError:
        return ""


def changes_from_document(document: object, source: Source) -> tuple[ThreadChange, ...]:
    """Return the changes in an ``ompaffinity.bind/1`` document.

    Raises:
        RequestError: it is no such document, a field is invalid, or it was made before this machine was started.
    """
    row = DocumentReader(source).row(WHOLE, document)
    if row.text("schema", MAX_NAME) != SCHEMA:
        raise row.invalid("schema", repr(SCHEMA))
    if row.text("boot_id", MAX_NAME) != boot_id():
        raise RequestError(
            f"{source.name} was made on another machine, or before this one was restarted: its processes do not run"
            " here; there is nothing to take back"
        )
    return tuple(map(_change, row.rows("threads")))


def _change(row: Row) -> ThreadChange:
    return ThreadChange(
        row.integer("pid", 1, MAX_PID),
        row.integer("thread_id", 1, MAX_PID),
        row.integer("start_time", 0, MAX_TICKS),
        row.text("name", MAX_NAME),
        row.id_list("before"),
        row.id_list("cpus"),
    )
