"""The best memory policy that the kernel grants: bind, else preferred-many, else preferred, else none.

What is granted is found out by setting it, for a kernel that tells the policy may still refuse to change it
(seccomp in containers), and may know fewer policies (preferred-many: Linux 5.15).
"""

from __future__ import annotations

import threading

from ompaffinity.errors import BindingError
from ompaffinity.memory.policy import (
    MemoryPolicyError,
    allowed_memory_nodes,
    restore_thread_policy,
    set_thread_policy,
    thread_policy,
)
from ompaffinity.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LADDER = ("preferred-many", "preferred")
"""What is tried after the policy that was asked for, in this order."""


class GrantedPolicy(NamedTuple):
    """The policy that the kernel took, ``"none"`` if it took none, on which nodes, and why it is not what was asked."""

    policy: str
    nodes: tuple[int, ...]
    refusal: BindingError | None = None


def take_policy(policy: str, nodes: Iterable[int]) -> GrantedPolicy:
    """Give the calling thread this policy, or the next best that the kernel grants; never raises for a refusal.

    ``"preferred"`` with several nodes means any of them, where the kernel can do that.
    """
    asked = tuple(sorted(set(nodes)))
    if policy == "none" or not asked:
        return GrantedPolicy("none", ())
    first = "preferred-many" if policy == "preferred" and len(asked) > 1 else policy
    refusal: BindingError | None = None
    for step in (first, *LADDER[LADDER.index(first) + 1 if first in LADDER else 0 :]):
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
            return GrantedPolicy(step, taken, refusal)
    return GrantedPolicy("none", (), refusal)


def _one_of(asked: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first of these nodes that may be used, the first one if none may."""
    usable = set(allowed_memory_nodes())
    return (next((node for node in asked if node in usable), asked[0]),)


def granted_policy(policy: str, nodes: Iterable[int]) -> GrantedPolicy:
    """Return what `take_policy` would grant, found out in a thread that ends with its policy."""
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
    return granted_policy("bind", nodes[:1]).policy == "bind"


def _in_thread(work: Callable[[], GrantedPolicy]) -> GrantedPolicy:
    results: list[GrantedPolicy | BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001
            results.append(error)

    thread = threading.Thread(target=body, name="memory policy probe")
    try:
        thread.start()
    except RuntimeError:
        return GrantedPolicy("none", (), MemoryPolicyError("no thread could be started to try the memory policy in"))
    thread.join()
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result
