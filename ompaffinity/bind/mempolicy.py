"""The memory policy of the calling thread: read it, set it, read it back, and fall back where the kernel refuses.

A thread inherits the policy of the thread that creates it. Sources: set_mempolicy(2), get_mempolicy(2), the kernel's
Documentation/admin-guide/mm/numa_memory_policy.rst. The system calls are reached through the library handle of
py-libnuma. Masks are as long as the largest node number requires, and every setting is read back: libnuma's own setters
return nothing, and py-libnuma's end the process for a node that does not exist.

The fallbacks are bind, preferred-many, preferred, none. A policy is tried by setting it: a kernel that reports the
policy may refuse to change it (seccomp in containers), and may support fewer policies (preferred-many: Linux 5.15,
weighted-interleave: Linux 6.9, which falls back to interleave first).
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from typing import TYPE_CHECKING

from ompaffinity.errors import BindingError
from ompaffinity.ids import format_id_list
from ompaffinity.records import NamedTuple
from ompaffinity.topology.limits import mems_allowed
from ompaffinity.topology.nodes import NODE_ROOT
from ompaffinity.topology.text import read_id_list
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED_MANY = 0, 1, 2, 3, 5
MPOL_WEIGHTED_INTERLEAVE = 6


MODES = {
    "bind": MPOL_BIND,
    "preferred": MPOL_PREFERRED,
    "preferred-many": MPOL_PREFERRED_MANY,
    "interleave": MPOL_INTERLEAVE,
    "weighted-interleave": MPOL_WEIGHTED_INTERLEAVE,
}


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
    """A thread's policy as the kernel reports it: mode with its flags (set_mempolicy(2)), and node numbers."""

    mode: int
    nodes: tuple[int, ...] = ()


DEFAULT_POLICY = ThreadPolicy(MPOL_DEFAULT)


def load_libnuma() -> ctypes.CDLL:
    """Return libnuma, with errno kept.

    Raises:
        LibnumaMissingError: it or py-libnuma cannot be loaded.
    """
    try:
        import numa

        return ctypes.CDLL(numa.LIBNUMA._name, use_errno=True)
    except (ImportError, AttributeError, OSError):
        # py-libnuma raises AttributeError where libnuma.so.1 is missing; so does another module of that name.
        raise LibnumaMissingError(
            "libnuma cannot be loaded; install libnuma1 (Debian, Ubuntu) or numactl-libs (Fedora, RHEL)"
        ) from None


def thread_policy() -> ThreadPolicy:
    """Return the policy of the calling thread.

    Raises:
        LibnumaMissingError: there is no libnuma.
        MemoryPolicyError: the kernel refuses to report it (seccomp), or supports no memory policies.
    """
    mode = ctypes.c_int()
    mask = (ctypes.c_ulong * (MASK_BITS // WORD_BITS))()
    library = load_libnuma()
    if library.get_mempolicy(ctypes.byref(mode), mask, ctypes.c_ulong(MASK_BITS), None, ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise MemoryPolicyError(f"the kernel rejects reading the memory policy ({os.strerror(code)}){_remedy(code)}")
    return ThreadPolicy(mode.value, mask_nodes(mask))


def set_thread_policy(policy: str, nodes: Iterable[int]) -> None:
    """Set the policy (a key of `MODES`) of the calling thread and read it back.

    `nodes` must be allowed nodes with memory. ``"preferred"`` takes one node; ``"preferred-many"``
    needs Linux 5.15 (MPOL_PREFERRED_MANY).

    Raises:
        LibnumaMissingError: there is no libnuma.
        MemoryPolicyError: a node cannot be used, the kernel refuses, or reports another policy afterwards.
    """
    wanted = ThreadPolicy(MODES[policy], tuple(sorted(set(nodes))))
    whole = f"the memory policy {policy} on node {format_id_list(wanted.nodes)}"
    try:
        _set(wanted)
        got = thread_policy()
    except MemoryPolicyError as error:
        reason = why_unusable(wanted.nodes)
        raise error if reason is None else MemoryPolicyError(f"{whole} is not available: {reason}") from None
    if got != wanted:
        reason = why_unusable(wanted.nodes) or "look at cpuset.mems"
        raise MemoryPolicyError(
            f"{whole} is not in effect: the kernel reports mode {got.mode},"
            f" node {format_id_list(got.nodes) or 'none'}; {reason}"
        )


def restore_thread_policy(policy: ThreadPolicy) -> None:
    """Give the calling thread a policy that `thread_policy` returned.

    Raises:
        LibnumaMissingError, MemoryPolicyError: as `set_thread_policy`.
    """
    _set(policy)


def why_unusable(nodes: Iterable[int]) -> str | None:
    """Return why this process cannot have memory of one of these nodes, None if nothing is known against it."""
    online, with_memory, allowed = _known_nodes()
    for node in nodes:
        if online is not None and node not in online:
            return f"this machine has no node {node}; its nodes are {format_id_list(online)}"
        if with_memory is not None and node not in with_memory:
            return f"node {node} has no memory; those that have some are {format_id_list(with_memory)}"
        if allowed is not None and node not in allowed:
            return (
                f"this process may not use the memory of node {node}, only that of {format_id_list(allowed)};"
                " widen cpuset.mems (docker: --cpuset-mems)"
            )
    return None


def allowed_memory_nodes() -> tuple[int, ...]:
    """Return the nodes that have memory which this process may use, ascending; none without NUMA information."""
    online, with_memory, allowed = _known_nodes()
    nodes = with_memory if with_memory is not None else online or ()
    return tuple(node for node in nodes if allowed is None or node in allowed)


def _known_nodes() -> tuple[list[int] | None, list[int] | None, tuple[int, ...] | None]:
    """Return the nodes that are online, have memory, and whose memory is allowed; None where it is not known."""
    with DirectoryTree("/") as tree:
        online, with_memory = (read_id_list(tree, f"{NODE_ROOT}/{name}") for name in ("online", "has_memory"))
        return online, with_memory, mems_allowed(tree)


def node_mask(nodes: Iterable[int]) -> tuple[ctypes.Array[ctypes.c_ulong], int]:
    """Return (mask, number of bits for the kernel) of these nodes."""
    wanted = tuple(nodes)
    words = max(wanted, default=0) // WORD_BITS + 1
    mask = (ctypes.c_ulong * words)()
    for node in wanted:
        mask[node // WORD_BITS] |= 1 << node % WORD_BITS
    # The kernel reads one bit less than the number it gets (set_mempolicy(2), "maxnode").
    return mask, words * WORD_BITS + 1


def mask_nodes(mask: ctypes.Array[ctypes.c_ulong]) -> tuple[int, ...]:
    """Return the nodes in a mask, ascending."""
    words = [(position * WORD_BITS, word) for position, word in enumerate(mask) if word]
    return tuple(start + bit for start, word in words for bit in range(WORD_BITS) if word >> bit & 1)


def _set(policy: ThreadPolicy) -> None:
    pointer, bits = node_mask(policy.nodes) if policy.nodes else (None, 0)
    if load_libnuma().set_mempolicy(ctypes.c_int(policy.mode), pointer, ctypes.c_ulong(bits)) != 0:
        code = ctypes.get_errno()
        raise MemoryPolicyError(
            f"the kernel rejects the memory policy on node {format_id_list(policy.nodes) or 'none'}"
            f" ({os.strerror(code)}){_remedy(code)}"
        )


def _remedy(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "; in a container add --cap-add SYS_NICE, or a seccomp profile that allows set_mempolicy"
    if code == errno.ENOSYS:
        return "; this kernel is built without NUMA, so there is no policy to set"
    return "; look at cpuset.mems"


FALLBACKS = ("preferred-many", "preferred")
"""What is tried after the policy that was asked for, in this order."""


def _steps(policy: str) -> tuple[str, ...]:
    """Return the policies that are tried, the one that was asked for first."""
    first = (policy, "interleave") if policy == "weighted-interleave" else (policy,)
    return (*first, *FALLBACKS[FALLBACKS.index(policy) + 1 if policy in FALLBACKS else 0 :])


class AcceptedPolicy(NamedTuple):
    """The policy that the kernel took, ``"none"`` if it took none, on which nodes, and why it is not what was asked."""

    policy: str
    nodes: tuple[int, ...]
    refusal: BindingError | None = None


def take_policy(policy: str, nodes: Iterable[int]) -> AcceptedPolicy:
    """Give the calling thread this policy, or the next best that the kernel accepts; never raises for a refusal.

    ``"preferred"`` with several nodes means any of them, where the kernel can do that.
    """
    asked = tuple(sorted(set(nodes)))
    if policy == "none" or not asked:
        return AcceptedPolicy("none", ())
    first = "preferred-many" if policy == "preferred" and len(asked) > 1 else policy
    refusal: BindingError | None = None
    for step in _steps(first):
        taken = _one_of(asked) if step == "preferred" else asked
        try:
            # A policy that cannot be read back, or given back, is not set.
            before = thread_policy()
            try:
                set_thread_policy(step, taken)
            except MemoryPolicyError:
                # The kernel may have taken something else than was asked.
                restore_thread_policy(before)
                raise
        except BindingError as error:
            refusal = refusal or error
            if not isinstance(error, MemoryPolicyError):
                break
        else:
            return AcceptedPolicy(step, taken, refusal)
    return AcceptedPolicy("none", (), refusal)


def _one_of(asked: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first of these nodes that may be used, the first one if none may."""
    usable = set(allowed_memory_nodes())
    return (next((node for node in asked if node in usable), asked[0]),)


def accepted_policy(policy: str, nodes: Iterable[int]) -> AcceptedPolicy:
    """Return what `take_policy` would return, found out in a thread that ends with its policy."""
    asked = tuple(nodes)
    return _in_thread(lambda: take_policy(policy, asked))


def can_set_mempolicy() -> bool:
    """Return whether this process may set a memory policy: tried by setting one in a thread that then ends.

    A container without SYS_NICE often may not (Docker's seccomp profile); neither may a process without libnuma
    or on a kernel without NUMA.
    """
    nodes = allowed_memory_nodes()
    if not nodes:
        return False
    return accepted_policy("bind", nodes[:1]).policy == "bind"


def _in_thread(work: Callable[[], AcceptedPolicy]) -> AcceptedPolicy:
    results: list[AcceptedPolicy | BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001
            results.append(error)

    thread = threading.Thread(target=body, name="memory policy probe")
    try:
        thread.start()
    except RuntimeError:
        return AcceptedPolicy("none", (), MemoryPolicyError("no thread could be started to try the memory policy in"))
    thread.join()
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result
