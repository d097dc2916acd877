"""What is read from /proc/PID (proc(5)) but the files that a process has mapped: `pid` is a number, or ``"self"``."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError
from ompaffinity.ids import MAX_DIGITS, parse_id_list
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE_FIELD, PARENT_FIELD, FLAGS_FIELD, USER_FIELD, SYSTEM_FIELD, START_TIME_FIELD, LAST_CPU_FIELD = (
    3,
    4,
    9,
    14,
    15,
    22,
    39,
)
"""Fields of /proc/PID/stat, counted from 1; the second, the name in parentheses, may hold anything."""
KERNEL_THREAD_FLAG = 0x200000
"""PF_KTHREAD among the flags of a process (sched.h)."""
FORKED_FLAG = 0x40
"""PF_FORKNOEXEC among the flags of a process: it was forked and has not executed a program since (sched.h)."""
MAX_ARGUMENT_BYTES = 6 * 2**20
"""What the arguments and the environment of a process may take in all, execve(2)."""
MAX_ARGUMENTS = 100_000
MAX_LINE_BYTES = 4096
MAX_DESCRIPTORS = 4096
DELETED = " (deleted)"


class Scheduling(NamedTuple):
    """What the scheduler did with a thread, in nanoseconds: how long it ran, and how long it waited to run."""

    run_ns: int
    delay_ns: int


class ProcessFacts(NamedTuple):
    """The parent of a process, its start time in clock ticks since boot, and whether it was forked without an exec.

    `has_ended`: it is a zombie, or its main thread has ended before the others. `ticks` is its CPU time so far in clock
    ticks, with that of threads that have ended.
    """

    parent: int
    start_time: int
    forked: bool
    has_ended: bool = False
    ticks: int = 0


class ThreadTimes(NamedTuple):
    """A thread's start in clock ticks since boot, its last CPU, and its CPU time so far.

    `run_ns` is the CPU time in nanoseconds, `delay_ns` the time that it waited for a CPU, None where the kernel does
    not count it; `run_ns` then has the resolution of a clock tick.
    """

    start_time: int
    last_cpu: int | None
    run_ns: int
    delay_ns: int | None


class Environment(NamedTuple):
    """The variables that a process was started with; `complete` is False where the program has overwritten some."""

    variables: dict[str, str]
    complete: bool


def parent_of(pid: int) -> int:
    """Return the number of a process's parent, 0 where there is no such process (any more)."""
    try:
        return int(stat_fields(pid)[PARENT_FIELD])
    except (OSError, KeyError, ValueError):
        return 0


def process_ids() -> list[int]:
    """Return the ids of all processes that this one can see, ascending."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def processes_below(*pids: int) -> Iterator[int]:
    """Yield the processes below these, the nearest first, as they are when it is called."""
    children: dict[int, list[int]] = {}
    for number in process_ids():
        children.setdefault(parent_of(number), []).append(number)
    waiting = [child for pid in pids for child in children.get(pid, ())]
    while waiting:
        found = waiting.pop(0)
        waiting += children.get(found, ())
        yield found


def last_process_id() -> int | None:
    """Return the number of the process or thread that was started last (proc_loadavg(5)), None where it is unknown."""
    try:
        with open("/proc/loadavg", encoding="ascii", errors="replace") as file:
            return int(file.read(MAX_LINE_BYTES).split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def environment_of(pid: int | str) -> Environment:
    """Return the environment that a process was started with; later changes do not show.

    A program that sets its title (setproctitle, PostgreSQL's way) overwrites the head of it.

    Raises:
        OSError: it may not be read, or there is no such process.
    """
    with open(f"/proc/{pid}/environ", "rb") as file:
        entries = file.read(MAX_ARGUMENT_BYTES).split(b"\0", MAX_ARGUMENTS)
    if len(entries) > MAX_ARGUMENTS:
        raise OSError(errno.E2BIG, f"it has more than {MAX_ARGUMENTS} variables")
    # The file ends with a NUL; without variables it is empty.
    complete = entries == [b""] or all(b"=" in entry for entry in entries[:-1])
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry)
    return Environment({name: value for name, _, value in pairs}, complete)


def started_with(pid: int | str) -> dict[str, str]:
    """Return the variables that a process was started with, without those that it has overwritten.

    Raises:
        OSError: they may not be read, or there is no such process.
    """
    return environment_of(pid).variables


def command_line(pid: int | str) -> list[str]:
    """Return the arguments of a process; none for a kernel thread, or where they may not be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(MAX_ARGUMENT_BYTES).split(b"\0", MAX_ARGUMENTS)
    except OSError:
        return []
    return [word.decode(errors="replace") for word in words if word]


def mask_of(number: int) -> set[int] | None:
    """Return the CPUs that a process or thread may run on, None where it has ended or the kernel does not report it."""
    try:
        return os.sched_getaffinity(number)
    except OSError:
        return None


def thread_ids(pid: int | str) -> list[int]:
    """Return the kernel's ids of the threads of a process, ascending.

    Raises:
        OSError: there is no such process, or it may not be seen.
    """
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))


def thread_name(pid: int | str, thread_id: int) -> str:
    """Return the name of a thread, "" where it has ended."""
    try:
        with open(f"{_folder(pid, thread_id)}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def status_fields(pid: int | str, thread_id: int | None = None) -> dict[str, str]:
    """Return the fields of the ``status`` file of a process or one of its threads.

    Raises:
        OSError: it has ended, or may not be seen.
    """
    with open(f"{_folder(pid, thread_id)}/status", encoding="utf-8", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def allowed_cpus(fields: dict[str, str]) -> tuple[int, ...] | None:
    """Return the mask among the fields of a ``status`` file, None where there is none."""
    try:
        return tuple(parse_id_list(fields["Cpus_allowed_list"]))
    except (KeyError, IDListError):
        return None


def stat_fields(pid: int | str, thread_id: int | None = None) -> dict[int, str]:
    """Return the fields of the ``stat`` file of a process or one of its threads from the third on, by their numbers.

    Raises:
        OSError: it has ended, or may not be seen.
    """
    with open(f"{_folder(pid, thread_id)}/stat", encoding="utf-8", errors="replace") as file:
        return dict(enumerate(file.read().rpartition(")")[2].split(), STATE_FIELD))


def is_kernel_thread(pid: int) -> bool:
    """Return whether a process is a thread of the kernel; False where it has ended."""
    try:
        return bool(_integer(stat_fields(pid), FLAGS_FIELD) & KERNEL_THREAD_FLAG)
    except OSError:
        return False


def cpu_ticks(pid: int) -> int:
    """Return the CPU time that a process has used with all its threads, in clock ticks; 0 where it has ended."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return 0
    return _integer(fields, USER_FIELD) + _integer(fields, SYSTEM_FIELD)


def process_facts(pid: int) -> ProcessFacts:
    """Return the parent, the start time and the way of start of a process.

    Raises:
        OSError: it has ended, or may not be seen.
    """
    fields = stat_fields(pid)
    return ProcessFacts(
        _integer(fields, PARENT_FIELD),
        _integer(fields, START_TIME_FIELD),
        bool(_integer(fields, FLAGS_FIELD) & FORKED_FLAG),
        fields.get(STATE_FIELD) in ("Z", "X"),
        _integer(fields, USER_FIELD) + _integer(fields, SYSTEM_FIELD),
    )


def thread_times(pid: int | str, thread_id: int) -> ThreadTimes:
    """Return a thread's start, last CPU and CPU time.

    Source: proc(5), ``stat`` and ``schedstat``. The latter is all zeros where the kernel does not count (sched_info).

    Raises:
        OSError: it has ended, or may not be seen.
    """
    fields = stat_fields(pid, thread_id)
    ticks = _integer(fields, USER_FIELD) + _integer(fields, SYSTEM_FIELD)
    times = scheduling(pid, thread_id)
    start, last = _integer(fields, START_TIME_FIELD), fields.get(LAST_CPU_FIELD, "")
    last_cpu = int(last) if last.isdecimal() and len(last) <= MAX_DIGITS else None
    if times is None or (times == (0, 0) and ticks):
        return ThreadTimes(start, last_cpu, ticks * 10**9 // os.sysconf("SC_CLK_TCK"), None)
    return ThreadTimes(start, last_cpu, times.run_ns, times.delay_ns)


def _integer(fields: dict[int, str], number: int) -> int:
    try:
        return int(fields.get(number, ""))
    except ValueError:
        return 0


def memory_file(pid: int | str, name: str, max_bytes: int) -> bytes | None:
    """Return the start of the memory file (memfd_create(2)) of this name that a process holds open, None for none."""
    try:
        numbers = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
    except OSError:
        return None
    for number in numbers[:MAX_DESCRIPTORS]:
        try:
            if os.readlink(f"/proc/{pid}/fd/{number}") == f"/memfd:{name}{DELETED}":
                with open(f"/proc/{pid}/fd/{number}", "rb") as file:
                    return file.read(max_bytes)
        except OSError:
            # It was closed meanwhile.
            continue
    return None


def bytes_read(pid: int | str) -> int | None:
    """Return how many bytes a process has read so far (proc(5), ``rchar`` of ``io``), None where that is unknown."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii", errors="replace") as file:
            name, _, number = file.readline().partition(":")
        return int(number) if name == "rchar" else None
    except (OSError, ValueError):
        return None


def start_time(pid: int | str, thread_id: int | None = None) -> int | None:
    """Return when a process or thread was started, in clock ticks since boot; None where it has ended.

    A number of a process or thread is used again later; the number and this time together are not.
    """
    try:
        return int(stat_fields(pid, thread_id)[START_TIME_FIELD])
    except (OSError, KeyError, ValueError):
        return None


def scheduling(pid: int | str, thread_id: int | None = None) -> Scheduling | None:
    """Return what the scheduler did with a thread; None where it has ended or the kernel does not count.

    Source: the kernel's Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat.
    """
    try:
        with open(f"{_folder(pid, thread_id)}/schedstat", encoding="ascii", errors="replace") as file:
            run, delay, _ = file.read().split()
        return Scheduling(int(run), int(delay))
    except (OSError, ValueError):
        return None


def numa_maps_lines(pid: int | str) -> Iterator[str]:
    """Yield the lines of a process's ``numa_maps``, whose reading takes about 16 ms per GiB of small pages.

    Raises:
        OSError: the kernel has none (FileNotFoundError), or does not show this one.
    """
    with open(f"/proc/{pid}/numa_maps", encoding="utf-8", errors="replace") as file:
        yield from file


def _folder(pid: int | str, thread_id: int | None) -> str:
    return f"/proc/{pid}" if thread_id is None else f"/proc/{pid}/task/{thread_id}"
