"""Reader: sysfs under any root, of this machine or a recorded one.

Sources: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu,
Documentation/ABI/stable/sysfs-devices-node, Documentation/admin-guide/cputopology.rst.

Groups (cores, caches, packages) come from the sibling lists, because the ids beside them (core_id, ...)
are not unique on one sixth of the recorded machines. Each list is read once per group, not once per CPU,
which keeps the reader fast on large machines.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.topology.kinds import CPU_ROOT, UNIFORM, read_kinds
from ompaffinity.topology.limits import limit_messages, read_limits
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, Topology
from ompaffinity.topology.nodes import read_nodes, whole_memory
from ompaffinity.topology.text import (
    ids_in,
    numbered,
    plain_number,
    read_id_list,
    read_mask,
    read_number,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ompaffinity.topology.model import Limits
    from ompaffinity.topology.tree import Tree

MAX_IDS_PER_CPU, MIN_COUNTED = 100, 10_000
"""Sibling lists name each CPU about ten times in all; firmware faults are allowed for."""
NO_ID = (UNKNOWN, 65535)
"""The id of a die, cluster or package that does not exist: -1, or -1 as 16 unsigned bits."""


def read_sysfs(tree: Tree, *, architecture: str, machine: str, affinity: tuple[int, ...] | None = None) -> Topology:
    """Return the machine whose ``sys/`` and ``proc/`` are in `tree`.

    `affinity` is the mask of this process if `tree` is the live machine.

    Raises:
        TopologyError: `tree` has no CPU.
    """
    present, listed = read_presence(tree)
    limits = read_limits(tree, affinity)
    # The kernel reports only online CPUs in the mask of a live process; a record may have others.
    granted = set(affinity or ()).intersection(present).difference(listed)
    online, hidden = _really_online(tree, present, listed, limits, granted)
    nodes = read_nodes(tree, online, limits)
    node_of = {cpu: node.id for node in reversed(nodes) for cpu in node.cpus}
    levels = _Levels(tree.at(CPU_ROOT), online, architecture)
    if not levels.l3 and _mcdram_is_cache(tree):
        levels.l3 = {cpu: number for number, node in enumerate(nodes) for cpu in node.cpus}
    kinds = read_kinds(tree, online)
    allowed = allowed_cpus(online, limits)
    isolated = set(read_id_list(tree, f"{CPU_ROOT}/isolated") or ())
    online_set = set(online)
    groups = (levels.core, node_of, levels.package, levels.die, levels.l3, levels.cluster, levels.book, levels.drawer)
    columns = [map(labels.get, present, repeat(UNKNOWN)) for labels in groups]
    flags = [map(members.__contains__, present) for members in (online_set, allowed, isolated)]
    of_cpus = [kinds.get(cpu, UNIFORM) for cpu in present]
    classes = ([found.core_class for found in of_cpus], [found.speed for found in of_cpus])
    fields = ([found.kind for found in of_cpus], *flags, *classes, map(hidden.__contains__, present))
    cpus = tuple(map(LogicalCPUInfo._make, zip(present, *columns, *fields)))
    messages = limit_messages(limits)
    return Topology(
        architecture,
        "sysfs",
        machine,
        cpus,
        nodes,
        limits,
        messages,
        whole_memory(tree, nodes),
        l3_bytes=tuple(levels.l3_bytes),
    )


def _really_online(
    tree: Tree, present: list[int], listed: list[int], limits: Limits, granted: set[int]
) -> tuple[list[int], frozenset[int]]:
    """Return the online CPUs, and those that a list of online CPUs hides (lxcfs writes one for a container).

    The mask and the cpuset of the process are the truth: what they allow is online. Without a limit the list counts.
    The `granted` CPUs are certain to be online.
    """
    missing = set(present).difference(listed)
    running = granted | {cpu for cpu in missing if _is_running(tree, cpu)}
    if not running:
        return listed, frozenset()
    limit = [set(ids) for ids in (limits.affinity, limits.cpuset_cpus) if ids is not None]
    allowed = set.intersection(*limit) & running if limit else set()
    return sorted({*listed, *allowed}), frozenset(running - allowed)


def _is_running(tree: Tree, cpu: int) -> bool:
    """Return whether a CPU is online by its own files; the first one may have no such file."""
    directory = f"{CPU_ROOT}/cpu{cpu}"
    state = read_text(tree, f"{directory}/online")
    return state == "1" or (state is None and "core_id" in tree.names(f"{directory}/topology"))


def allowed_cpus(online: Iterable[int], limits: Limits) -> set[int]:
    """Return the online CPUs that are in the affinity mask and in the cpuset of this process."""
    allowed = set(online)
    for limit in (limits.affinity, limits.cpuset_cpus):
        if limit is not None:
            allowed &= set(limit)
    return allowed


def read_online(tree: Tree) -> list[int] | None:
    """Return the ids of the online CPUs, None where the kernel has no list of them."""
    return read_id_list(tree, f"{CPU_ROOT}/online")


def read_presence(tree: Tree) -> tuple[list[int], list[int]]:
    """Return (present, online) CPU ids, ascending.

    Raises:
        TopologyError: no CPU is online.
    """
    listed = read_online(tree)
    if listed:
        present = set(read_id_list(tree, f"{CPU_ROOT}/present") or listed) | set(listed)
        return sorted(present), listed
    directories = numbered(tree.names(CPU_ROOT), "cpu")
    # Kernels before 2.6.26 have no list; a CPU without an `online` file cannot be set offline.
    online = [cpu for cpu in directories if read_text(tree, f"{CPU_ROOT}/cpu{cpu}/online") != "0"]
    if not online:
        raise TopologyError(f"no CPU in /{CPU_ROOT}; mount sysfs, or record the machine with its /sys")
    return directories, online


def _mcdram_is_cache(tree: Tree) -> bool:
    """Return whether a Xeon Phi uses its MCDRAM as the last-level cache of each node.

    sysfs does not show it; hwloc-dump-hwdata(1) writes it to this file at boot.
    """
    report = (read_text(tree, "var/run/hwloc/knl_memoryside_cache") or "").splitlines()
    return any(line.startswith("cache_size:") and line.split()[1:] != ["0"] for line in report)


class _Levels:
    """Group numbers of every level, {cpu: number}, in the order of the groups' first CPUs."""

    def __init__(self, tree: Tree, online: list[int], architecture: str) -> None:
        self._tree = tree
        self._online = online
        self._online_set = set(online)
        self._absent: set[str] = set()
        self._ids_left = MAX_IDS_PER_CPU * max(len(online), MIN_COUNTED)
        self.core = self._number(self._siblings, "core_cpus", "thread_siblings")
        self._on_core = _members(self.core)
        self.l3_bytes: list[int] = []
        # Some records have the topology without the caches.
        ends = (online[0], online[-1])
        has_caches = any(tree.names(f"cpu{cpu}/cache") for cpu in ends)
        self.l3 = self._number(self._l3_siblings) if has_caches else {}
        # Only s390x has books and drawers. There book_id may be 0 for all books, but the lists are correct.
        s390 = architecture in ("s390x", "s390", "unknown")
        self.book = self._number(self._siblings, "book_siblings") if s390 else {}
        self.drawer = self._number(self._siblings, "drawer_siblings") if s390 else {}
        # Where the lists are narrower than the ids (Linux 3 with cluster-on-die), the lists count, as for lscpu.
        self.package = self._number_by_id(
            "physical_package_id", "package_cpus", "core_siblings", within=self.book, lists_first=True
        )
        # An L3 is never shared between dies.
        self.die = self._number_by_id("die_id", "die_cpus", within=self.package, optional=True, whole=self.l3)
        self.cluster = self._number_by_id("cluster_id", "cluster_cpus", within=self.package, optional=True)

    def _siblings(self, cpu: int, *names: str) -> list[int] | None:
        for name in names:
            if name in self._absent:
                continue
            ids = self._group_with(cpu, f"topology/{name}")
            if ids:
                return ids
            if not self._group_with(self._online[-1], f"topology/{name}"):
                self._absent.add(name)
        return None

    def _group_with(self, cpu: int, mask: str) -> list[int] | None:
        """Return the ids in the list beside a mask, or in the mask if the list lacks its own CPU (a firmware fault)."""
        name = f"{mask.removesuffix('_map')}_list"
        content = None
        if name not in self._absent:
            content = self._tree.read(f"cpu{cpu}/{name}")
            if content is None and self._tree.read(f"cpu{self._online[-1]}/{name}") is None:
                # Neither this CPU nor the last one has it: the kernel is too old, and the others are not asked.
                self._absent.add(name)
        ids = self._counted(None if content is None else ids_in(content))
        if ids is not None and cpu in ids:
            return ids
        return self._counted(read_mask(self._tree, f"cpu{cpu}/{mask}")) or ids

    def _counted(self, ids: list[int] | None) -> list[int] | None:
        """Return these ids; a machine has each CPU in one list per level.

        Raises:
            TopologyError: the lists of this tree have so many ids that they contradict each other.
        """
        self._ids_left -= len(ids or ())
        if self._ids_left < 0:
            raise TopologyError(
                "the sibling lists of its CPUs contradict each other: too many of them name too many CPUs"
            )
        return ids

    def _number(self, members_of: Callable[..., list[int] | None], *names: str) -> dict[int, int]:
        labels: dict[int, int] = {}
        groups = 0
        for cpu in self._online:
            if cpu not in labels:
                members = members_of(cpu, *names)
                if members is not None:
                    labels[cpu] = groups
                    for member in members:
                        labels.setdefault(member, groups)
                    groups += 1
        return self._of_online(labels)

    def _of_online(self, labels: dict[int, int]) -> dict[int, int]:
        """Remove the offline CPUs, which some old kernels still list as siblings."""
        if labels.keys() <= self._online_set:
            return labels
        return {cpu: label for cpu, label in labels.items() if cpu in self._online_set}

    def _number_by_id(
        self,
        id_name: str,
        *names: str,
        within: dict[int, int],
        optional: bool = False,
        lists_first: bool = False,
        whole: dict[int, int] | None = None,
    ) -> dict[int, int]:
        """Number groups by the kernel's id, which is unique `within` the groups of another level.

        The id is read once per sibling list; without lists, once per group of a level whose groups are never split
        (`whole`). Groups without an id are identified by their lists, or omitted if the level is `optional`. With
        `lists_first` each list is a group, whatever its id.
        """
        inside = _members(whole or {})
        last_of = {within.get(cpu): cpu for cpu in self._online}
        labels: dict[int, int] = {}
        number_of: dict[tuple[int | None, int | None], int] = {}
        without: set[int | None] = set()
        for cpu in self._online:
            outer = within.get(cpu)
            if cpu in labels or outer in without:
                continue
            identity = self._id(cpu, id_name)
            if identity is None and optional:
                if self._id(last_of[outer], id_name) is None:
                    # Neither the first nor the last CPU of the package has an id, so the others are not read.
                    without.add(outer)
                continue
            members = self._siblings(cpu, *names)
            has_list = members is not None
            if members is None:
                if identity is None:
                    continue
                members = inside.get((whole or {}).get(cpu, UNKNOWN), [cpu])
            key = (None, cpu) if identity is None or (lists_first and has_list) else (outer, identity)
            number = number_of.setdefault(key, len(number_of))
            labels[cpu] = number
            for member in members:
                labels.setdefault(member, number)
        return self._of_online(labels)

    def _id(self, cpu: int, name: str) -> int | None:
        identity = read_number(self._tree, f"cpu{cpu}/topology/{name}")
        return None if identity in NO_ID else identity

    def _l3_siblings(self, cpu: int) -> list[int] | None:
        cache = f"cpu{cpu}/cache"
        # On almost all machines index0..2 are L1d, L1i and L2.
        is_usual = read_text(self._tree, f"{cache}/index3/level") == "3"
        for index in ("index3",) if is_usual else self._tree.names(cache):
            if is_usual or read_text(self._tree, f"{cache}/{index}/level") == "3":
                # The map is empty on Itanium, where each core has its own L3.
                shared = self._group_with(cpu, f"cache/{index}/shared_cpu_map")
                self.l3_bytes.append(_size(read_text(self._tree, f"{cache}/{index}/size") or ""))
                return shared or self._on_core.get(self.core.get(cpu, UNKNOWN), [cpu])
        return None


def _size(text: str) -> int:
    """Return the bytes of a cache size (``8192K``), -1 for any other text."""
    number = plain_number(text.removesuffix("K"))
    return UNKNOWN if number is None or not text.endswith("K") else number * 1024


def _members(labels: dict[int, int]) -> dict[int, list[int]]:
    """Return {group: members} of {member: group}."""
    members: dict[int, list[int]] = {}
    for member, label in labels.items():
        members.setdefault(label, []).append(member)
    return members
