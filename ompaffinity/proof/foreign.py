"""How much of the CPU time of some CPUs other processes took, and which: /proc/stat and /proc/PID/stat (proc(5))."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.proc import command_line, cpu_ticks, is_kernel_thread, mask_of, process_ids, thread_ids
from ompaffinity.records import NamedTuple
from ompaffinity.shown import brief_command, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ompaffinity.proof.observe import ProcessState

STAT_FILE = "/proc/stat"
MAX_STAT_BYTES = 16 * 2**20
BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal; the time of guests is part of user."""
STEAL_COLUMN = 7
SHOWN_PROCESSES = 3
NANOSECOND = 1e-9
LEAST_TICKS = 2
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class CPUTimes(NamedTuple):
    """The time that each CPU was busy so far, in seconds, the part of it that the hypervisor stole, and when."""

    seconds: float
    busy: dict[int, float]
    steal: dict[int, float]


class ForeignTime(NamedTuple):
    """CPU time that others took on some CPUs: in seconds, as a part of these CPUs' time, and the stolen part of it."""

    seconds: float
    share: float
    stolen: float


def cpu_times() -> CPUTimes:
    """Return the times of all CPUs that are online; none where the kernel does not show them."""
    busy, steal = {}, {}
    try:
        with open(STAT_FILE, "rb") as file:
            lines = file.read(MAX_STAT_BYTES).splitlines()
    except OSError:
        lines = []
    for line in lines[1:]:
        name, *fields = line.split()
        if not name.startswith(b"cpu"):
            break
        try:
            number, ticks = int(name[3:]), [int(field) for field in fields[: STEAL_COLUMN + 1]]
            busy[number] = sum(ticks[column] for column in BUSY_COLUMNS) / TICKS
            steal[number] = ticks[STEAL_COLUMN] / TICKS
        except (ValueError, IndexError):
            continue
    return CPUTimes(time.monotonic(), busy, steal)


def own_seconds(before: Mapping[int, ProcessState], after: Mapping[int, ProcessState]) -> dict[int, float]:
    """Return the CPU time of some processes between two observations: {CPU: seconds}.

    A thread that may run on several CPUs is assumed to have run on each of them alike, and one that has ended on those
    of its process. A process counts from its second observation on.
    """
    by_mask: dict[tuple[int, ...], float] = {}
    for pid, state in after.items():
        earlier = before.get(pid)
        if earlier is None or earlier.start_time != state.start_time:
            continue
        ran = {thread.thread_id: thread.run_ns for thread in earlier.threads}
        total = (state.ticks - earlier.ticks) / TICKS
        for thread in state.threads:
            used = max(0, thread.run_ns - ran.get(thread.thread_id, 0)) * NANOSECOND
            total -= used
            by_mask[thread.cpus] = by_mask.get(thread.cpus, 0.0) + used
        if total > LEAST_TICKS / TICKS and state.threads:
            everywhere = tuple({cpu for thread in state.threads for cpu in thread.cpus})
            by_mask[everywhere] = by_mask.get(everywhere, 0.0) + total
    found: dict[int, float] = {}
    for cpus, seconds in by_mask.items():
        for cpu in cpus:
            found[cpu] = found.get(cpu, 0.0) + seconds / len(cpus)
    return found


def foreign_time(
    cpus: Collection[int], before: CPUTimes, after: CPUTimes, own: Mapping[int, float]
) -> ForeignTime | None:
    """Return what others took on these CPUs between two readings, None where it is unknown."""
    known = [cpu for cpu in cpus if cpu in before.busy and cpu in after.busy]
    total = (after.seconds - before.seconds) * len(known)
    if total <= 0:
        return None
    busy = sum(after.busy[cpu] - before.busy[cpu] for cpu in known)
    stolen = sum(after.steal[cpu] - before.steal[cpu] for cpu in known)
    foreign = max(0.0, busy - sum(own.get(cpu, 0.0) for cpu in known))
    return ForeignTime(foreign, min(1.0, foreign / total), min(stolen, foreign))


def ticks_of_others(own: Collection[int]) -> dict[int, int]:
    """Return the CPU time so far of every process but these and this one: {pid: clock ticks}."""
    return {pid: cpu_ticks(pid) for pid in process_ids() if pid not in own and pid != os.getpid()}


def busiest_others(before: Mapping[int, int], own: Collection[int], cpus: Collection[int]) -> str | None:
    """Return the processes that used the most CPU time since `before` and may run on these CPUs, in words.

    `own` are left out.

    None where there are none that this process can see.
    """
    used = {pid: ticks - before.get(pid, 0) for pid, ticks in ticks_of_others(own).items()}
    found: list[str] = []
    for pid in sorted(used, key=lambda number: (-used[number], number)):
        if used[pid] < LEAST_TICKS or len(found) == SHOWN_PROCESSES:
            break
        allowed = _allowed(pid) & set(cpus)
        if allowed:
            name = "a kernel thread" if is_kernel_thread(pid) else shown(brief_command(" ".join(command_line(pid))))
            found.append(f"process {pid} ({name[:40]}) on CPU {format_id_list(allowed)}")
    return ", ".join(found) or None


def _allowed(pid: int) -> set[int]:
    try:
        threads: Iterable[int] = thread_ids(pid)
    except OSError:
        return set()
    return {cpu for thread in threads for cpu in mask_of(thread) or ()}
