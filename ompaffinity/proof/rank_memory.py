"""Where the pages of a watched rank are, and whether many of them have moved to other nodes since the last reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

MOVED_BYTES, MOVED_SHARE = 64 * 2**20, 0.1
"""Memory that is remote and was not before: less than this, or than this part of all, is not reported."""
BALANCING = "/proc/sys/kernel/numa_balancing"


class PageSplit(NamedTuple):
    """The bytes on the planned nodes, and those on others."""

    local: int
    remote: int


class RankMemory:
    """The pages of one process, by node."""

    def __init__(self) -> None:
        self._by_node: dict[int, int] | None = None
        self._before: PageSplit | None = None

    def split(self, nodes: Collection[int]) -> PageSplit | None:
        """Return how many bytes are on these nodes; None where that is unknown, or no nodes are planned."""
        if self._by_node is None or not nodes:
            return None
        remote = sum(size for node, size in self._by_node.items() if node not in nodes)
        return PageSplit(sum(self._by_node.values()) - remote, remote)

    def take(self, by_node: dict[int, int] | None, nodes: Collection[int], *, complete: bool) -> tuple[str, str] | None:
        """Take where the pages are now; return what has moved off these nodes, and the cause, if it is much.

        It is not `complete` where only a part could be read: that is not compared.
        """
        self._by_node = by_node
        now = self.split(nodes)
        if now is None or by_node is None or not complete:
            return None
        before, self._before = self._before, now
        # New memory elsewhere has not moved: what is more there must be less here.
        moved = 0 if before is None else min(now.remote - before.remote, before.local - now.local)
        if moved <= max(MOVED_BYTES, MOVED_SHARE * sum(now)):
            return None
        away = {node: size for node, size in sorted(by_node.items()) if node not in nodes}
        where = ", ".join(f"{size / 2**20:.0f} MiB on node {node}" for node, size in away.items())
        return f"{where}, the plan requires node {format_id_list(nodes)}", _cause_of_migration()


def _cause_of_migration() -> str:
    try:
        with open(BALANCING, encoding="ascii", errors="replace") as file:
            balances = file.read(16).strip() not in ("", "0")
    except OSError:
        balances = False
    if balances:
        return "automatic NUMA balancing (sysctl kernel.numa_balancing), migratepages, or a change of cpuset.mems"
    return "migrate_pages(2) (migratepages), or a change of cpuset.mems"
