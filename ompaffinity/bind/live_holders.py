"""The CPUs that processes running here are bound to (``--avoid live``), without a plan file.

A process counts that carries a placement of this package, or whose threads have masks narrower than the machine and
than the cpuset of its control group, and that used CPU time in a short window. Sources: sched_setaffinity(2),
cpuset(7), proc_pid_stat(5).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.placement.document import PLACEMENT_VARIABLE, PUBLISHED_NAME, parse_placement
from ompaffinity.placement.request import HeldCPUs
from ompaffinity.proc import (
    MAX_ARGUMENT_BYTES,
    cpu_ticks,
    is_kernel_thread,
    mask_of,
    memory_file,
    parent_of,
    process_ids,
    processes_below,
    started_with,
    thread_ids,
    thread_name,
)
from ompaffinity.shown import shown
from ompaffinity.topology.limits import cpuset_cpus
from ompaffinity.topology.sysfs import read_presence
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ompaffinity.topology.tree import Tree

SAMPLE_SECONDS = 0.5
BUSY_TICKS = 2
"""CPU time in the window, in clock ticks (10 ms): less is a process that only waits."""
MAX_THREADS = 4096


def held_live(launcher: int | None = None) -> tuple[HeldCPUs, ...]:
    """Return the CPUs that each process is bound to, ascending by pid.

    Left out are kernel threads, this process and its ancestors, and everything below `launcher`: what it starts has one
    plan in common. A process that carries a placement counts although it is idle; others only if they are busy.

    Raises:
        TopologyError: sysfs lists no CPU.
    """
    own = {os.getpid(), *_ancestors(os.getpid())}
    if launcher is not None:
        own.update(processes_below(launcher))
    before = {pid: cpu_ticks(pid) for pid in process_ids() if pid not in own and not is_kernel_thread(pid)}
    with DirectoryTree("/") as tree:
        _, listed = read_presence(tree)
        # The mask of this process has CPUs that a faked list lacks (lxcfs).
        online = {*listed, *(mask_of(0) or ())}
        placed = {pid: held for pid in before if (held := _by_placement(pid, online))}
        time.sleep(SAMPLE_SECONDS)
        for pid, ticks in before.items():
            if pid not in placed and cpu_ticks(pid) - ticks >= BUSY_TICKS:
                held = _by_masks(tree, pid, online)
                if held:
                    placed[pid] = held
    return tuple(HeldCPUs(_name(pid), tuple(sorted(placed[pid])), pid=pid) for pid in sorted(placed))


def _ancestors(pid: int) -> Iterator[int]:
    above = parent_of(pid)
    while above:
        yield above
        above = parent_of(above)


def _by_placement(pid: int, online: Collection[int]) -> set[int]:
    """Return the CPUs of the placement that a process carries; its mask, where it was moved to other CPUs since."""
    try:
        text = started_with(pid).get(PLACEMENT_VARIABLE)
    except OSError:
        return set()
    if text is None:
        published = memory_file(pid, PUBLISHED_NAME, MAX_ARGUMENT_BYTES)
        text = None if published is None else published.decode(errors="replace")
    try:
        placement = None if text is None else parse_placement(text)
    except RequestError:
        return set()
    mask = mask_of(pid)
    if placement is None or not placement.bound or mask is None:
        return set()
    planned = {*placement.cpus, *placement.helper_cpus, *placement.affinity}
    # The placement of another user's process counts only within its mask.
    if mask <= planned and _is_of_this_user(pid):
        return planned & set(online)
    return mask if mask < set(online) else set()


def _is_of_this_user(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid()
    except OSError:
        return False


def _by_masks(tree: Tree, pid: int, online: Collection[int]) -> set[int]:
    """Return the CPUs of the threads whose masks are narrower than the machine and than the cpuset of the process."""
    cpuset = cpuset_cpus(tree, pid)
    widest = set(online) if cpuset is None else set(cpuset) & set(online)
    held: set[int] = set()
    try:
        threads = thread_ids(pid)[:MAX_THREADS]
    except OSError:
        return held
    for thread in threads:
        mask = (mask_of(thread) or set()) & set(online)
        if mask and mask != widest and mask < set(online):
            held |= mask
    return held


def _name(pid: int) -> str:
    return f"process {pid} ({shown(thread_name(pid, pid))})"
