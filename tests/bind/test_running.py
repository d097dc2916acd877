"""Threads of running processes are bound from outside, and restored where they still have what they got."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from ompaffinity.bind.running import (
    NOT_PERMITTED,
    Rebinding,
    ThreadChange,
    bind_threads,
    boot_id,
    changes_from_document,
    take_back,
)
from ompaffinity.errors import RequestError
from ompaffinity.placement.fields import Source
from ompaffinity.proc import mask_of, start_time, thread_ids
from tests.conftest import CPUS, needs_two_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

SOURCE = Source("--undo undo.json", "is not a record", "pass another file")
THREADS = """
import threading, sys
for _ in range({count}):
    threading.Thread(target=sys.stdin.read).start()
print(flush=True)
"""
FIRST = (min(CPUS),)
ALL = tuple(sorted(CPUS))
NOBODY = 65534


@contextmanager
def process_with_threads(count: int) -> Iterator[int]:
    """Start a process with so many threads beside its main one, and yield its id."""
    command = [sys.executable, "-c", THREADS.format(count=count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def started(pid: int) -> int:
    return start_time(pid) or 0


def row(**fields: Any) -> dict[str, Any]:
    change = {"pid": 1, "thread_id": 1, "start_time": 0, "name": "", "before": "0", "cpus": "0"} | fields
    return {"schema": "ompaffinity.bind/1", "boot_id": boot_id(), "threads": [change]}


@needs_two_cpus
def test_binds_each_thread_to_its_cpus_and_all_others_alike() -> None:
    with process_with_threads(3) as pid:
        second = thread_ids(pid)[1]
        binding = bind_threads(pid, started(pid), {second: ALL[1:2]}, FIRST)
        assert {number: mask_of(number) for number in thread_ids(pid)} == {
            number: set(ALL[1:2] if number == second else FIRST) for number in thread_ids(pid)
        }
        assert [change.thread_id for change in binding.changes] == thread_ids(pid)
        assert {change.before for change in binding.changes} == {ALL}
        assert binding.refused == ()


@needs_two_cpus
def test_keeps_narrower_masks_of_threads_without_a_place() -> None:
    with process_with_threads(1) as pid:
        second = thread_ids(pid)[1]
        os.sched_setaffinity(second, ALL[1:2])
        binding = bind_threads(pid, started(pid), {pid: FIRST}, ALL, keep_narrower=True)
        assert [change.thread_id for change in binding.changes] == [pid]
        assert (mask_of(pid), mask_of(second)) == (set(FIRST), set(ALL[1:2]))


@needs_two_cpus
def test_binds_wider_threads_also_where_narrower_ones_are_kept() -> None:
    with process_with_threads(2) as pid:
        binding = bind_threads(pid, started(pid), {}, FIRST, keep_narrower=True)
        assert len(binding.changes) == 3
        assert {tuple(mask_of(number) or ()) for number in thread_ids(pid)} == {FIRST}


@needs_two_cpus
def test_a_thread_that_has_its_cpus_already_is_no_change() -> None:
    with process_with_threads(1) as pid:
        os.sched_setaffinity(pid, FIRST)
        binding = bind_threads(pid, started(pid), {}, FIRST)
        assert [change.thread_id for change in binding.changes] == thread_ids(pid)[1:]
        assert bind_threads(pid, started(pid), {}, FIRST) == Rebinding((), ())


@needs_two_cpus
def test_restores_what_threads_had_before() -> None:
    with process_with_threads(2) as pid:
        binding = bind_threads(pid, started(pid), {}, FIRST)
        restored = take_back(binding.changes)
        assert all(mask_of(number) == set(ALL) for number in thread_ids(pid))
        assert len(restored.changes) == 3


@needs_two_cpus
def test_leaves_threads_that_got_other_cpus_since() -> None:
    with process_with_threads(1) as pid:
        binding = bind_threads(pid, started(pid), {}, FIRST)
        os.sched_setaffinity(pid, ALL[1:2])
        restored = take_back(binding.changes)
        assert mask_of(pid) == set(ALL[1:2])
        assert [change.thread_id for change in restored.changes] == thread_ids(pid)[1:]


@needs_two_cpus
def test_leaves_a_thread_that_has_the_number_of_an_earlier_one() -> None:
    with process_with_threads(0) as pid:
        (change,) = bind_threads(pid, started(pid), {}, FIRST).changes
        assert take_back([change._replace(start_time=change.start_time - 1)]).changes == ()
        assert mask_of(pid) == set(FIRST)


@needs_two_cpus
def test_binds_threads_that_are_started_meanwhile() -> None:
    code = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(0.2,)).start()"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            time.sleep(0.5)
            bind_threads(process.pid, started(process.pid), {}, FIRST)
            time.sleep(0.5)
            assert {frozenset(mask_of(number) or FIRST) for number in thread_ids(process.pid)} == {frozenset(FIRST)}
        finally:
            process.kill()


STARTS_THREAD_PER_LINE = """
import sys, threading, time
for line in sys.stdin:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    print(flush=True)
"""


class StartingMasks(dict[int, tuple[int, ...]]):
    """Masks of a process that starts a thread when it is asked for the first one, before any thread is bound."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self._process: subprocess.Popen[bytes] | None = process

    def get(self, _number: int, default: Any = None) -> Any:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
        return default


@needs_two_cpus
def test_looks_again_for_threads_that_an_unbound_one_has_started() -> None:
    command = [sys.executable, "-c", STARTS_THREAD_PER_LINE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        binding = bind_threads(process.pid, started(process.pid), StartingMasks(process), FIRST)
        numbers = thread_ids(process.pid)
        assert [mask_of(number) for number in numbers] == [set(FIRST)] * 2
        assert [change.thread_id for change in binding.changes] == numbers


def test_lists_threads_of_unusable_cpus_as_refused() -> None:
    with process_with_threads(0) as pid:
        binding = bind_threads(pid, started(pid), {}, (max(os.cpu_count() or 1, 1) + 4000,))
        assert binding.changes == ()
        assert [thread.pid for thread in binding.refused] == [pid]
        assert "online" in binding.refused[0].reason
        assert mask_of(pid) == set(ALL)


@needs_two_cpus
def test_lists_threads_that_cannot_get_back_what_they_had() -> None:
    with process_with_threads(0) as pid:
        (change,) = bind_threads(pid, started(pid), {}, FIRST).changes
        unusable = change._replace(before=(max(os.cpu_count() or 1, 1) + 4000,))
        restored = take_back([unusable])
        assert restored.changes == ()
        assert [thread.pid for thread in restored.refused] == [pid]
        assert mask_of(pid) == set(FIRST)


def test_names_the_privilege_that_another_users_process_needs() -> None:
    reader, writer = os.pipe()
    with process_with_threads(0) as pid:
        child = os.fork()
        if child == 0:
            if os.getuid() == 0:
                os.setuid(NOBODY)
            target = pid if os.getuid() == NOBODY else 1
            reasons = {thread.reason for thread in bind_threads(target, started(target), {}, FIRST).refused}
            os.write(writer, "|".join(reasons).encode())
            # Nothing of pytest's may run in the child.
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
    assert os.read(reader, 1000).decode() in ((NOT_PERMITTED,) if os.getuid() == 0 else (NOT_PERMITTED, ""))


def test_leaves_a_process_that_has_the_number_of_an_earlier_one() -> None:
    with process_with_threads(0) as pid:
        assert bind_threads(pid, started(pid) - 1, {}, FIRST) == ((), ())
        assert mask_of(pid) == set(ALL)


def test_binds_nothing_of_a_process_that_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert bind_threads(process.pid, 0, {}, FIRST) == ((), ())


def test_a_change_survives_its_document() -> None:
    change = ThreadChange(os.getpid(), os.getpid(), start_time("self") or 0, "python", (0, 1), (1,))
    document = {"schema": "ompaffinity.bind/1", "boot_id": boot_id(), "threads": [change.to_document()]}
    assert changes_from_document(document, SOURCE) == (change,)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        row(pid=0),
        row(pid=-1),
        row(pid=2**31),
        row(thread_id=0),
        row(thread_id=2**31),
        row(start_time=-1),
        row(start_time=2**63),
        row(thread_id="1"),
        row(start_time=None),
        row(before="x"),
        row(cpus="0-99999999"),
        row() | {"schema": "ompaffinity.plan/1"},
        row() | {"threads": {}},
    ],
)
def test_rejects_a_record_with_invalid_fields(document: object) -> None:
    with pytest.raises(RequestError, match=r"--undo undo\.json is not a record: .*; pass another file"):
        changes_from_document(document, SOURCE)


def test_reads_the_largest_numbers_of_the_kernel() -> None:
    (change,) = changes_from_document(row(pid=2**31 - 1, thread_id=2**31 - 1, start_time=2**63 - 1), SOURCE)
    assert change[:3] == (2**31 - 1, 2**31 - 1, 2**63 - 1)


def test_reads_the_smallest_numbers_of_the_kernel() -> None:
    (change,) = changes_from_document(row(pid=1, thread_id=1, start_time=0), SOURCE)
    assert change[:3] == (1, 1, 0)


def test_rejects_a_record_of_an_earlier_start_of_the_machine() -> None:
    with pytest.raises(RequestError, match="before this one was restarted"):
        changes_from_document(row() | {"boot_id": "another"}, SOURCE)


@needs_two_cpus
def test_binds_threads_that_come_after_one_that_is_kept() -> None:
    with process_with_threads(1) as pid:
        os.sched_setaffinity(pid, FIRST)
        found = bind_threads(pid, started(pid), {}, FIRST, keep_narrower=True)
        assert [change.thread_id for change in found.changes] == [number for number in thread_ids(pid) if number != pid]


@needs_two_cpus
def test_restores_other_threads_beside_one_that_got_other_cpus() -> None:
    with process_with_threads(2) as pid:
        changes = bind_threads(pid, started(pid), {}, FIRST).changes
        os.sched_setaffinity(changes[-1].thread_id, ALL)
        restored = take_back(changes).changes
        assert [change.thread_id for change in restored] == [change.thread_id for change in reversed(changes[:-1])]


def test_only_what_was_rebound_is_added_to_it() -> None:
    change = ThreadChange(1, 1, 0, "", (0,), (1,))
    assert Rebinding((change,)) + Rebinding((change,)) == Rebinding((change, change))
    with pytest.raises(TypeError):
        Rebinding().__add__(((change,), ())) + Rebinding()
