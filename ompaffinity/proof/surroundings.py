"""What the kernel reports around the watched processes: CPU time, control groups, which CPUs are online."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.proof.foreign import CPUTimes, cpu_times, own_seconds
from ompaffinity.records import NamedTuple
from ompaffinity.topology.limits import cpuset_cpus, cpuset_files
from ompaffinity.topology.sysfs import read_online
from ompaffinity.topology.text import read_id_list
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ompaffinity.proof.observe import ProcessState
    from ompaffinity.topology.tree import Tree

OWN_GROUP = "/sys/fs/cgroup"
INSIDE = ("cpuset.cpus.effective", "cpuset/cpuset.effective_cpus", "cpuset/cpuset.cpus")
"""The cpuset of a container as it sees it itself, below `OWN_GROUP`: v2, v1."""


class Surroundings(NamedTuple):
    """What all ranks have in common in a check.

    `before` and `after` are the times of the CPUs, `own` is the CPU time of the processes of each tree in between,
    {pid of a rank: {CPU: seconds}}. `online` is empty where it is unknown. `cpusets` are those of the control groups,
    {pid: CPUs}. `alive` are the processes of all trees.
    """

    before: CPUTimes
    after: CPUTimes
    own: Mapping[int, Mapping[int, float]]
    online: frozenset[int]
    cpusets: Mapping[int, frozenset[int] | None]
    alive: Collection[int]


class SurroundingsReader:
    """Reads the surroundings check by check."""

    def __init__(self) -> None:
        self._before = self._times = cpu_times()
        self._earlier: Mapping[int, ProcessState] = {}
        self._states: Mapping[int, ProcessState] = {}
        self._groups: frozenset[bytes] = frozenset()
        self._groups_of_files: frozenset[bytes] | None = None
        self._files: tuple[str, ...] = ()

    def advance(self, states: Mapping[int, ProcessState]) -> None:
        """Read the CPU times; call it directly after the processes were observed."""
        self._before, self._times = self._times, cpu_times()
        self._earlier, self._states = self._states, states

    def read(self, ranks: Collection[int], roots: Collection[int]) -> Surroundings:
        """Return the surroundings of the processes that are ranks, between the last two calls of `advance`."""
        root_of = {pid: self._root(pid, roots) for pid in self._states}
        own = {
            root: own_seconds(self._earlier, {pid: self._states[pid] for pid in self._states if root_of[pid] == root})
            for root in {root_of[pid] for pid in ranks if pid in root_of}
        }
        by_group: dict[bytes, frozenset[int] | None] = {}
        cpusets = {}
        with DirectoryTree("/") as tree:
            online = frozenset(read_online(tree) or self._times.busy)
            for pid in ranks:
                group = tree.read(f"proc/{pid}/cgroup") or b""
                if group not in by_group:
                    by_group[group] = _cpuset(tree, pid)
                cpusets[pid] = by_group[group]
        self._groups = frozenset(by_group)
        own_of = {pid: own[root_of[pid]] for pid in ranks if pid in root_of}
        return Surroundings(self._before, self._times, own_of, online, cpusets, self._states.keys())

    def tree_of(self, pid: int, roots: Collection[int]) -> list[int]:
        """Return the processes that have the same root as this one."""
        root = self._root(pid, roots)
        return [other for other in self._states if self._root(other, roots) == root]

    def _root(self, pid: int, roots: Collection[int]) -> int:
        """Return the root above a process, or itself where it is below none."""
        seen: set[int] = set()
        number = pid
        while number not in roots and number in self._states and number not in seen:
            seen.add(number)
            number = self._states[number].parent
        return number if number in roots else pid

    def files(self, pids: Iterable[int]) -> tuple[str, ...]:
        """Return the files that set the cpusets of processes: found again when one is in another group."""
        if self._groups != self._groups_of_files:
            with DirectoryTree("/") as tree:
                found = [f"/{path}" for pid in pids for path in cpuset_files(tree, pid)]
            self._files, self._groups_of_files = tuple(dict.fromkeys(found)), self._groups
        return self._files


def _cpuset(tree: Tree, pid: int) -> frozenset[int] | None:
    """Return the cpuset of a process's control group; in another cgroup namespace that which it sees itself."""
    cpus = cpuset_cpus(tree, pid)
    if cpus is not None:
        return frozenset(cpus)
    for name in INSIDE:
        inside = read_id_list(tree, f"proc/{pid}/root{OWN_GROUP}/{name}")
        if inside:
            return frozenset(inside)
    return None
