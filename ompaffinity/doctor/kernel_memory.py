"""Memory settings of the kernel: huge pages and NUMA balancing.

Sources: the kernel's Documentation/admin-guide/mm/hugetlbpage.rst and transhuge.rst, and
Documentation/admin-guide/sysctl/kernel.rst (numa_balancing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.records import NamedTuple
from ompaffinity.topology.nodes import NODE_ROOT
from ompaffinity.topology.text import numbered, plain_number, read_number, read_text

if TYPE_CHECKING:
    from ompaffinity.topology.tree import Tree

WHOLE_MACHINE = -1


class HugePages(NamedTuple):
    """Reserved huge pages of one size on a node (`WHOLE_MACHINE`: the nodes are unknown), and how many are free."""

    node: int
    page_bytes: int
    total: int
    free: int


def huge_pages(tree: Tree) -> tuple[HugePages, ...]:
    """Return the reserved huge pages, by node and size."""
    nodes = numbered(tree.names(NODE_ROOT), "node")
    folders = [(node, f"{NODE_ROOT}/node{node}/hugepages") for node in nodes]
    reserved = []
    for node, folder in folders or [(WHOLE_MACHINE, "sys/kernel/mm/hugepages")]:
        for name in tree.names(folder):
            kibibytes = plain_number(name.removeprefix("hugepages-").removesuffix("kB"))
            total = read_number(tree, f"{folder}/{name}/nr_hugepages")
            if kibibytes and total:
                free = read_number(tree, f"{folder}/{name}/free_hugepages") or 0
                reserved.append(HugePages(node, kibibytes * 1024, total, free))
    return tuple(reserved)


def numa_balancing(tree: Tree) -> bool | None:
    """Return whether the kernel migrates pages to the nodes of the threads that use them, None if unsupported."""
    value = read_number(tree, "proc/sys/kernel/numa_balancing")
    return None if value is None else value > 0


def transparent_huge_pages(tree: Tree) -> str | None:
    """Return the mode of transparent huge pages: ``always``, ``madvise`` or ``never``; None if unsupported."""
    text = read_text(tree, "sys/kernel/mm/transparent_hugepage/enabled") or ""
    mode = text.partition("[")[2].partition("]")[0]
    return mode or None
