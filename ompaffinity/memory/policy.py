"""The memory policy of the calling thread: read it, set it, read it back.

A thread that is started inherits the policy of the thread that starts it. Sources:
set_mempolicy(2), get_mempolicy(2), the kernel's Documentation/admin-guide/mm/numa_memory_policy.rst.
The system calls are reached through the library handle of py-libnuma; masks are as long as the
largest node number asks for, and the kernel is always asked what it did: libnuma's own setters
return nothing.
"""

from __future__ import annotations

import ctypes
import os

from ompaffinity.errors import BindingError
from ompaffinity.records import NamedTuple
from ompaffinity.topology.idlist import format_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED_MANY = 0, 1, 2, 3, 5
MODES = {"bind": MPOL_BIND, "preferred": MPOL_PREFERRED, "interleave": MPOL_INTERLEAVE}
MASK_BITS = 16384
"""get_mempolicy(2) refuses masks shorter than the kernel's own; MAX_NUMNODES is at most 1024 today."""
WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)


class LibnumaMissingError(BindingError):
    """libnuma, or its Python module, is not installed."""

    code = "libnuma-missing"


class MemoryPolicyError(BindingError):
    """The kernel refused a memory policy, or did not take it."""

    code = "memory-policy-not-permitted"


class ThreadPolicy(NamedTuple):
    """A thread's policy as the kernel tells it: mode with its flags (set_mempolicy(2)), and node numbers."""

    mode: int
    nodes: tuple[int, ...] = ()


def load_libnuma() -> ctypes.CDLL:
    """Return libnuma, with errno kept.

    Raises:
        LibnumaMissingError: it or py-libnuma cannot be loaded.
    """
    try:
        import numa
    except (ImportError, AttributeError, OSError):
        # py-libnuma raises AttributeError where libnuma.so.1 is missing.
        raise LibnumaMissingError(
            "libnuma cannot be loaded; install libnuma1 (Debian, Ubuntu) or numactl-libs (Fedora, RHEL)"
        ) from None
    return ctypes.CDLL(numa.LIBNUMA._name, use_errno=True)


def thread_policy() -> ThreadPolicy:
    """Return the policy of the calling thread.

    Raises:
        LibnumaMissingError: there is no libnuma.
        MemoryPolicyError: the kernel refuses to tell (seccomp).
    """
    mode = ctypes.c_int()
    mask = (ctypes.c_ulong * (MASK_BITS // WORD_BITS))()
    library = load_libnuma()
    if library.get_mempolicy(ctypes.byref(mode), mask, ctypes.c_ulong(MASK_BITS), None, ctypes.c_ulong(0)) != 0:
        raise MemoryPolicyError(f"the kernel refused to tell the memory policy ({os.strerror(ctypes.get_errno())})")
    words = [(position * WORD_BITS, word) for position, word in enumerate(mask) if word]
    return ThreadPolicy(
        mode.value, tuple(start + bit for start, word in words for bit in range(WORD_BITS) if word >> bit & 1)
    )


def set_thread_policy(policy: str, nodes: Iterable[int]) -> None:
    """Set the policy (``"bind"``, ``"preferred"`` or ``"interleave"``) of the calling thread and read it back.

    `nodes` must be allowed nodes with memory. Several preferred nodes need Linux 5.15
    (MPOL_PREFERRED_MANY).

    Raises:
        LibnumaMissingError: there is no libnuma.
        MemoryPolicyError: the kernel refuses, or says afterwards that something else holds.
    """
    wanted = tuple(sorted(set(nodes)))
    mode = MPOL_PREFERRED_MANY if policy == "preferred" and len(wanted) > 1 else MODES[policy]
    _set(ThreadPolicy(mode, wanted))
    got = thread_policy()
    if got != ThreadPolicy(mode, wanted):
        raise MemoryPolicyError(
            f"the memory policy {policy} on node {format_id_list(wanted)} was not taken:"
            f" the kernel says mode {got.mode}, node {format_id_list(got.nodes) or 'none'}; look at cpuset.mems"
        )


def restore_thread_policy(policy: ThreadPolicy) -> None:
    """Give the calling thread a policy that `thread_policy` returned.

    Raises:
        LibnumaMissingError, MemoryPolicyError: as `set_thread_policy`.
    """
    _set(policy)


def _set(policy: ThreadPolicy) -> None:
    words = max(policy.nodes, default=0) // WORD_BITS + 1
    mask = (ctypes.c_ulong * words)()
    for node in policy.nodes:
        mask[node // WORD_BITS] |= 1 << node % WORD_BITS
    # The kernel reads one bit less than it is told (set_mempolicy(2), "maxnode").
    pointer, bits = (mask, words * WORD_BITS + 1) if policy.nodes else (None, 0)
    if load_libnuma().set_mempolicy(ctypes.c_int(policy.mode), pointer, ctypes.c_ulong(bits)) != 0:
        raise MemoryPolicyError(
            f"the kernel refused to set the memory policy on node {format_id_list(policy.nodes) or 'none'}"
            f" ({os.strerror(ctypes.get_errno())}); in a container add --cap-add SYS_NICE, and look at cpuset.mems"
        )
