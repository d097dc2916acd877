"""The limits of this process, or of the recording one: affinity mask and control groups.

Sources: sched_getaffinity(2); /proc/self/status (proc(5)); cpuset(7); the kernel's
Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError
from ompaffinity.ids import parse_id_list
from ompaffinity.messages import LIMITS_UNKNOWN
from ompaffinity.topology.model import Limits
from ompaffinity.topology.text import plain_number, read_id_list, read_number, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.messages import Message
    from ompaffinity.topology.tree import Tree

UNLIMITED_V1 = 2**62
"""cgroup v1 shows "no limit" as the largest multiple of the page size, which is above this value."""


def live_affinity() -> tuple[int, ...] | None:
    """Return the affinity mask of the calling thread, ascending; None if the system has no affinity masks."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return tuple(sorted(os.sched_getaffinity(0)))


def read_limits(tree: Tree, affinity: tuple[int, ...] | None = None) -> Limits:
    """Return the limits recorded in `tree`; `affinity` is the mask of this process on a live machine."""
    groups = _ControlGroups(tree)
    nodes = mems_allowed(tree)
    if nodes is None:
        nodes = groups.cpuset("mems")
    return Limits(
        affinity=ids_in_status(tree, "Cpus_allowed_list") if affinity is None else affinity,
        unknown=groups.unknown(),
        cpuset_cpus=groups.cpuset("cpus"),
        cpuset_nodes=nodes,
        cpu_quota=groups.cpu_quota(),
        memory_limit_bytes=groups.memory_limit(),
        memory_usage_bytes=groups.memory_usage(),
    )


def cpuset_cpus(tree: Tree, process: int | str = "self") -> tuple[int, ...] | None:
    """Return the CPUs that the control group of a process allows, ascending; None where it does not show any."""
    return _ControlGroups(tree, process).cpuset("cpus")


def cpuset_files(tree: Tree, process: int | str = "self") -> tuple[str, ...]:
    """Return the files that set the CPUs of a process's control group and of those above, innermost first."""
    directories = [directory for directory, _ in _ControlGroups(tree, process).directories("cpuset")]
    return tuple(f"{directory}/cpuset.cpus" for directory in directories if tree.read(f"{directory}/cpuset.cpus"))


def memory_left(tree: Tree) -> int | None:
    """Return the bytes that this process may still allocate in its control groups, None without a limit.

    The page cache counts as free, as it does on a node.
    """
    return _ControlGroups(tree).memory_left()


def mems_allowed(tree: Tree, process: str = "self") -> tuple[int, ...] | None:
    """Return the nodes in ``Mems_allowed_list`` of a process's status, None if the kernel does not show it."""
    return ids_in_status(tree, "Mems_allowed_list", process)


def limit_messages(limits: Limits) -> tuple[Message, ...]:
    """Return the message about limits that cannot be seen."""
    if not limits.unknown:
        return ()
    return (LIMITS_UNKNOWN(controllers=", ".join(limits.unknown)),)


def ids_in_status(tree: Tree, field: str, process: str = "self") -> tuple[int, ...] | None:
    """Return the id list in a field of a process's status (proc_pid_status(5)), None if the kernel does not show it."""
    status = read_text(tree, f"proc/{process}/status") or ""
    for line in status.splitlines():
        name, _, ids = line.partition(":")
        if name == field:
            try:
                return tuple(parse_id_list(ids))
            except IDListError:
                return None
    return None


class _ControlGroups:
    """The control groups of a process (the recorded one), v1 and v2, wherever they are mounted."""

    def __init__(self, tree: Tree, process: int | str = "self") -> None:
        self._tree = tree
        self._paths = _paths_by_controller(tree, process)
        self._mounts = _mounts(tree)

    def cpuset(self, what: str) -> tuple[int, ...] | None:
        """Return the effective ``cpus`` or ``mems`` of the innermost group that shows them."""
        # In the legacy mode of version 1 the kernel itself keeps `cpus` to what is online and allowed above.
        has_effective = any("cpuset_v2_mode" in options for _, options, *_ in self._mounts)
        v1_names = [f"cpuset.{what}", what]
        if has_effective:
            v1_names.insert(0, f"cpuset.effective_{what}")
        for directory, version in self.directories("cpuset"):
            names = [f"cpuset.{what}.effective"] if version == 2 else v1_names
            for name in names:
                ids = read_id_list(self._tree, f"{directory}/{name}")
                if ids:
                    return tuple(ids)
        return None

    def cpu_quota(self) -> float | None:
        """Return the tightest CPU bandwidth limit along the path, in CPUs."""
        quotas = []
        for directory, version in self.directories("cpu"):
            if version == 2:
                words = (read_text(self._tree, f"{directory}/cpu.max") or "max").split()
                quota, period = [plain_number(word) for word in words] if len(words) == 2 else (None, None)
            else:
                quota = read_number(self._tree, f"{directory}/cpu.cfs_quota_us")
                period = read_number(self._tree, f"{directory}/cpu.cfs_period_us")
            if quota and period and quota > 0 and period > 0:
                quotas.append(quota / period)
        return min(quotas, default=None)

    def memory_limit(self) -> int | None:
        """Return the tightest memory limit along the path, in bytes."""
        return min((limit for limit, _ in self._memory_limits()), default=None)

    def memory_usage(self) -> int | None:
        """Return the usage of the group with the tightest limit (or else of the innermost one), in bytes."""
        limits = list(self._memory_limits())
        directories = [min(limits)[1]] if limits else [directory for directory, _ in self.directories("memory")]
        return next((usage for usage in map(self._usage, directories) if usage is not None), None)

    def _usage(self, directory: str) -> int | None:
        usage = read_number(self._tree, f"{directory}/memory.current")
        return read_number(self._tree, f"{directory}/memory.usage_in_bytes") if usage is None else usage

    def _memory_limits(self) -> Iterator[tuple[int, str]]:
        for directory, version in self.directories("memory"):
            limit = read_number(self._tree, f"{directory}/{'memory.max' if version == 2 else 'memory.limit_in_bytes'}")
            if limit is not None and 0 <= limit < UNLIMITED_V1:
                yield limit, directory

    def memory_left(self) -> int | None:
        """Return the smallest remaining memory of the groups along the path, in bytes."""
        left = []
        for limit, directory in self._memory_limits():
            usage = self._usage(directory)
            if usage is not None:
                left.append(max(0, limit - max(0, usage - self._reclaimable(directory))))
        return min(left, default=None)

    def _reclaimable(self, directory: str) -> int:
        """Return the part of a group's usage that the kernel can reclaim: page cache and slabs, in bytes."""
        fields = {}
        for line in (read_text(self._tree, f"{directory}/memory.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            fields[name] = plain_number(value) or 0
        # v1 has separate fields that include the child groups; the fields of v2 always include them.
        prefix = "total_" if "total_inactive_file" in fields else ""
        return sum(fields.get(prefix + name, 0) for name in ("active_file", "inactive_file", "slab_reclaimable"))

    def unknown(self) -> tuple[str, ...]:
        """Return the controllers whose groups of this process cannot be seen: outside of its cgroup namespace."""
        return tuple(
            controller
            for controller in ("cpuset", "cpu", "memory")
            if (mounts := [*self._mounts_of(controller)]) and not any(is_visible for *_, is_visible in mounts)
        )

    def _mounts_of(self, controller: str) -> Iterator[tuple[int, str, str, str, bool]]:
        """Yield (version, path, mount root, mount point, whether the group is visible) of a controller's mounts."""
        for version, mounted, mount_root, mount_point in self._mounts:
            path = self._paths.get(controller if version == 1 else "")
            if path is None and controller == "cpuset":
                path = self._paths.get("cpuset file")
            if path is None or (version == 1 and controller not in mounted):
                continue
            # A path or a mount root with ".." is outside of the cgroup namespace (cgroup_namespaces(7)).
            is_visible = ".." not in path.split("/") and ".." not in mount_root.split("/")
            yield version, path, mount_root, mount_point, is_visible

    def directories(self, controller: str) -> Iterator[tuple[str, int]]:
        """Yield (directory, cgroup version) of the process's groups for a controller, innermost first."""
        candidates = []
        for version, path, mount_root, mount_point, is_visible in self._mounts_of(controller):
            if not is_visible:
                continue
            root = mount_root.rstrip("/")
            inside = path == root or path.startswith(root + "/")
            candidates.append((inside, version, path[len(root) :] if inside else path, mount_point))
        for inside, version, path, mount_point in candidates:
            if inside or not any(other for other, *_ in candidates):
                parts = [part for part in path.split("/") if part not in ("", ".")]
                for length in range(len(parts), -1, -1):
                    yield "/".join([mount_point, *parts[:length]]), version


def _paths_by_controller(tree: Tree, process: int | str) -> dict[str, str]:
    """Return a process's group path by controller name; ``""`` is the unified (v2) hierarchy."""
    paths = {}
    for line in (read_text(tree, f"proc/{process}/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            paths[controller] = path
    cpuset = read_text(tree, f"proc/{process}/cpuset")
    if cpuset:
        paths["cpuset file"] = cpuset
    return paths


def _mounts(tree: Tree) -> list[tuple[int, list[str], str, str]]:
    """Return (version, controllers, root within the hierarchy, mount point) of every cgroup mount."""
    mounts = []
    information = read_text(tree, "proc/self/mountinfo")
    for line in (information or read_text(tree, "proc/mounts") or "").splitlines():
        if "cgroup" not in line and "cpuset" not in line:
            continue
        words = line.split()
        if information:
            # proc_pid_mountinfo(5): "36 35 98:0 /root /mount/point rw,noatime shared:1 - type source superoptions"
            if len(words) < 9 or "-" not in words[6:]:
                continue
            root, point = words[3], words[4]
            kind, _, options = [*words[words.index("-", 6) + 1 :], "", "", ""][:3]
        else:
            # fstab(5): "source /mount/point type options 0 0"
            if len(words) < 4:
                continue
            root, point, kind, options = "/", words[1], words[2], words[3]
        version = {"cgroup": 1, "cpuset": 1, "cgroup2": 2}.get(kind)
        if version is not None:
            controllers = ["cpuset"] if kind == "cpuset" else options.split(",")
            mounts.append((version, controllers, _unescaped(root), _unescaped(point).strip("/")))
    return mounts


def _unescaped(path: str) -> str:
    """Replace the octal escapes in mount points (proc_pid_mounts(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path
