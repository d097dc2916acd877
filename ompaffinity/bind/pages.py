"""Where the pages of a process are, and how to move them: numa(7), migrate_pages(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import TYPE_CHECKING

from ompaffinity.bind.mempolicy import MemoryPolicyError, load_libnuma, node_mask
from ompaffinity.errors import BindingError
from ompaffinity.proc import numa_maps_lines
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class NoRoomError(BindingError):
    """The nodes to move pages to are full."""

    code = "memory-nearly-full"


class MappedMemory(NamedTuple):
    """Memory of a process: {policy as numa_maps words it: {node: bytes}}, and {node: bytes} of its anonymous pages.

    It is not `complete` where the time was over before all mappings were read.
    """

    bytes_by_policy: dict[str, dict[int, int]]
    anonymous: dict[int, int]
    complete: bool = True

    @property
    def bytes_by_node(self) -> dict[int, int]:
        """Return {node: bytes} over all policies."""
        total: dict[int, int] = {}
        for nodes in self.bytes_by_policy.values():
            for node, size in nodes.items():
                total[node] = total.get(node, 0) + size
        return total


def parse_numa_maps(lines: Iterable[str]) -> MappedMemory:
    """Return the memory in lines of /proc/pid/numa_maps; pages of a file count as well.

    A mapping of a file counts as anonymous where the process wrote to it (``anon=``).
    """
    found: dict[str, dict[int, int]] = {}
    anonymous: dict[int, int] = {}
    for line in lines:
        # The policies of two words (mempolicy.c) are kept as one.
        words = line.replace(" prefer (many)", " prefer_(many)", 1).replace(" weighted i", " weighted_i", 1).split()
        if len(words) < 2:
            continue
        policy = words[1].replace("prefer_(", "prefer (").replace("weighted_", "weighted ")
        page = next((word.partition("=")[2] for word in words if word.startswith("kernelpagesize_kB=")), "4")
        size = 1024 * int(page) if page.isdigit() else 4096
        written = any(word.startswith("anon=") for word in words)
        for word in words[2:]:
            node, equals, count = word[1:].partition("=")
            if word[0] == "N" and equals and node.isdigit() and count.isdigit():
                nodes = found.setdefault(policy, {})
                nodes[int(node)] = nodes.get(int(node), 0) + size * int(count)
                if written:
                    anonymous[int(node)] = anonymous.get(int(node), 0) + size * int(count)
    return MappedMemory(found, anonymous)


def mapped_memory(pid: int | str = "self", seconds: float | None = None) -> MappedMemory:
    """Return where the pages of a process are; after so many `seconds` only of the mappings that were read by then.

    Raises:
        OSError: the kernel has no numa_maps (FileNotFoundError), or does not show this one.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    complete = True

    def in_time() -> Iterator[str]:
        nonlocal complete
        for line in numa_maps_lines(pid):
            if deadline is not None and time.monotonic() > deadline:
                complete = False
                return
            yield line

    return parse_numa_maps(in_time())._replace(complete=complete)


def migrate_process_pages(sources: Iterable[int], targets: Iterable[int], pid: int = 0) -> int:
    """Move the pages of a process (0: this one) from some nodes to others; return how many could not be moved.

    Pages that other processes map as well (for example of libraries) stay.

    Raises:
        LibnumaMissingError: there is no libnuma.
        NoRoomError: the nodes are full.
        MemoryPolicyError: the kernel refuses.
    """
    origin, origin_bits = node_mask(sources)
    target, target_bits = node_mask(targets)
    if len(origin) != len(target):
        # One number of bits stands for both masks.
        words = max(len(origin), len(target))
        origin = (ctypes.c_ulong * words)(*origin)
        target = (ctypes.c_ulong * words)(*target)
    migrate = load_libnuma().migrate_pages
    left = migrate(pid or os.getpid(), ctypes.c_ulong(max(origin_bits, target_bits)), origin, target)
    if left < 0:
        code = ctypes.get_errno()
        reason = os.strerror(code)
        if code == errno.ENOMEM:
            raise NoRoomError(f"the nodes have no room for what is to be moved there ({reason})")
        raise MemoryPolicyError(
            f"the kernel rejects moving pages that are already allocated ({reason});"
            " in a container add --cap-add SYS_NICE"
        )
    return int(left)
