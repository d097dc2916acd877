"""What the kernel does with memory on its own: huge pages, and moving pages after the threads that use them.

Sources: the kernel's Documentation/admin-guide/mm/hugetlbpage.rst and transhuge.rst, and
Documentation/admin-guide/sysctl/kernel.rst (numa_balancing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.topology.nodes import NODE_ROOT
from ompaffinity.topology.text import numbered, plain_number, read_number, read_text

if TYPE_CHECKING:
    from ompaffinity.topology.tree import Tree

WHOLE_MACHINE = -1


class HugePages(NamedTuple):
    """Huge pages of one size set aside on a node (`WHOLE_MACHINE`: no nodes are known), and how many are free."""

    node: int
    page_bytes: int
    total: int
    free: int


def huge_pages(tree: Tree) -> tuple[HugePages, ...]:
    """Return the huge pages that are set aside, by node and size; none where there are none."""
    nodes = numbered(tree.names(NODE_ROOT), "node")
    folders = [(node, f"{NODE_ROOT}/node{node}/hugepages") for node in nodes]
    found = []
    for node, folder in folders or [(WHOLE_MACHINE, "sys/kernel/mm/hugepages")]:
        for name in tree.names(folder):
            kibibytes = plain_number(name.removeprefix("hugepages-").removesuffix("kB"))
            total = read_number(tree, f"{folder}/{name}/nr_hugepages")
            if kibibytes and total:
                free = read_number(tree, f"{folder}/{name}/free_hugepages") or 0
                found.append(HugePages(node, kibibytes * 1024, total, free))
    return tuple(found)


def numa_balancing(tree: Tree) -> bool | None:
    """Return whether the kernel moves pages after the threads that use them, None where it cannot."""
    value = read_number(tree, "proc/sys/kernel/numa_balancing")
    return None if value is None else value > 0


def transparent_huge_pages(tree: Tree) -> str | None:
    """Return when the kernel uses huge pages on its own: ``always``, ``madvise`` or ``never``; None if not known."""
    text = read_text(tree, "sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = text.partition("[")[2].partition("]")[0]
    return chosen or None
