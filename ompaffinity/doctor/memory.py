"""Checks of the memory: policies, limits, and the settings of the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.bind.capacity import full_nodes
from ompaffinity.bind.mempolicy import accepted_policy, allowed_memory_nodes, load_libnuma
from ompaffinity.doctor.kernel_memory import WHOLE_MACHINE, huge_pages, numa_balancing, transparent_huge_pages
from ompaffinity.doctor.record import OK, PROBLEM, WARNING, Check
from ompaffinity.errors import BindingError
from ompaffinity.ids import format_id_list
from ompaffinity.topology.limits import memory_left

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree

MAX_USAGE = 0.95
"""The largest used fraction of a memory limit that leaves room for a worker."""


def memory_checks(topology: Topology, tree: Tree) -> Iterator[Check]:
    """Yield the checks of the memory. On one node a missing memory policy is a warning, on several a problem."""
    several = len(allowed_memory_nodes()) > 1
    yield _libnuma(several)
    yield _policy(several)
    yield _nodes(topology)
    yield _limit(topology, tree)
    yield _balancing(tree, several)
    yield _transparent(tree)
    yield _huge(tree)


def _libnuma(several: bool) -> Check:
    try:
        load_libnuma()
    except BindingError as error:
        return Check(
            "libnuma", PROBLEM if several else WARNING, str(error), "apt install libnuma1, dnf install numactl-libs"
        )
    return Check("libnuma", OK, "libnuma and py-libnuma are installed; numactl is not required")


def _policy(several: bool) -> Check:
    nodes = allowed_memory_nodes()
    if not nodes:
        return Check("memory policy", OK, "none required: the kernel reports no NUMA nodes")
    accepted = accepted_policy("bind", nodes[:1])
    if accepted.refusal is None:
        return Check("memory policy", OK, "threads can be bound to the memory of a node")
    level = PROBLEM if several else WARNING
    text = f"the kernel rejects the policy bind; workers get {accepted.policy}: {accepted.refusal}"
    return Check(
        "memory policy", level, text, "docker, podman: --cap-add SYS_NICE; Kubernetes: add SYS_NICE to capabilities"
    )


def _nodes(topology: Topology) -> Check:
    # The kernel never allows a node without memory.
    hidden = [node.id for node in topology.nodes if not node.allowed and node.has_memory is not False]
    full = [found for node in allowed_memory_nodes() if (found := full_nodes((node,))) is not None]
    if full:
        text = "; ".join(
            f"node {format_id_list(found.nodes)} has {found.available_bytes / 2**20:.0f} MiB available of"
            f" {found.total_bytes / 2**20:.0f} MiB"
            for found in full
        )
        fix = "stop the processes that use it, or exclude the node: --nodes LIST"
        return Check("memory nodes", WARNING, text, fix)
    if hidden:
        text = f"the memory of node {format_id_list(hidden)} is not allowed"
        return Check("memory nodes", WARNING, text, "plans avoid it; widen cpuset.mems (docker: --cpuset-mems)")
    nodes = format_id_list(node.id for node in topology.nodes)
    return Check("memory nodes", OK, f"node {nodes}, all allowed" if nodes else "none: no NUMA information")


def _limit(topology: Topology, tree: Tree) -> Check:
    limit, left = topology.limits.memory_limit_bytes, memory_left(tree)
    if limit is None:
        return Check("memory limit", OK, "none")
    text = f"{limit / 2**30:.1f} GiB (control group)" + (f", {left / 2**30:.1f} GiB left" if left is not None else "")
    if left is not None and left < (1 - MAX_USAGE) * limit:
        fix = "raise memory.max (docker: --memory), or stop other processes of the group"
        return Check("memory limit", WARNING, text, fix)
    return Check("memory limit", OK, text)


def _balancing(tree: Tree, several: bool) -> Check:
    on = numa_balancing(tree)
    if on and several:
        text = "on: the kernel samples page accesses, which costs page faults that bound workers do not need"
        return Check("NUMA balancing", WARNING, text, "sysctl kernel.numa_balancing=0")
    return Check("NUMA balancing", OK, {True: "on", False: "off", None: "unsupported by this kernel"}[on])


def _transparent(tree: Tree) -> Check:
    mode = transparent_huge_pages(tree)
    if mode == "never":
        fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        return Check("transparent huge pages", WARNING, "never: large tensors need more address translation", fix)
    return Check("transparent huge pages", OK, mode or "unsupported by this kernel")


def _huge(tree: Tree) -> Check:
    reserved = huge_pages(tree)
    if not reserved:
        return Check("huge pages", OK, "none reserved")
    texts, idle = [], 0
    for pages in reserved:
        where = "" if pages.node == WHOLE_MACHINE else f"node {pages.node}: "
        kibibytes = pages.page_bytes // 1024
        size = f"{kibibytes // 1024} MiB" if kibibytes >= 1024 else f"{kibibytes} KiB"
        texts.append(f"{where}{pages.total} of {size}, {pages.free} free")
        idle += pages.free * pages.page_bytes
    text = "; ".join(texts)
    if idle >= 2**30:
        fix = "lower nr_hugepages if no process requests huge pages"
        return Check("huge pages", WARNING, f"{text}: {idle / 2**30:.1f} GiB unavailable as normal pages", fix)
    return Check("huge pages", OK, text)
