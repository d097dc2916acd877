"""The memory of a running process: the policy of its threads, and the pages that it has touched."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.bind.capacity import machine_memory
from ompaffinity.bind.deferred_signals import deferred_signals
from ompaffinity.bind.mempolicy import MODES, allowed_memory_nodes, why_unusable
from ompaffinity.bind.pages import NoRoomError, mapped_memory, migrate_process_pages
from ompaffinity.bind.process import ProcessBinding
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.messages import PAGES_NOT_MOVED, REFUSALS

if TYPE_CHECKING:
    from collections.abc import Iterable

POLICIES = ("auto", *MODES, "none")


NEGLIGIBLE = 0.01
"""The part of the pages that may stay without a word."""


class MemoryBinding(ProcessBinding):
    """What `init_cpu_memory_env` did; `undo`, or leaving it as a context, restores the policies and moves no page.

    `policy` and `nodes` are what the kernel accepted, `threads` the kernel's ids of those that have it.
    `moved_bytes` were moved to the nodes, `anonymous` is where the process's own pages are now, {node: bytes}; None if
    no nodes were given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.policy = "none"
        self.nodes: tuple[int, ...] = ()
        self.threads: tuple[int, ...] = ()
        self.moved_bytes = 0
        self.anonymous: dict[int, int] | None = None


def init_cpu_memory_env(nodes: Iterable[int], policy: str = "auto", migrate: bool = True) -> MemoryBinding:
    """Take the memory of this process from these nodes: what comes, and with `migrate` what is there already.

    ``"auto"`` binds to one node and interleaves over several. The calling thread and its OpenMP team get the
    policy (``"none"``: the kernel's default), as will threads that they start; other threads of the process keep
    theirs. What the kernel does not accept (a container without SYS_NICE) leaves the next best policy and a warning.
    No nodes: nothing happens.

    Raises:
        RequestError: `nodes` are no node numbers, or a node that cannot be used; an unknown policy.
    """
    wanted = _checked_nodes(nodes)
    if policy not in POLICIES:
        raise RequestError(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
    binding = MemoryBinding()
    if not wanted:
        return binding
    if policy == "auto":
        policy = "bind" if len(wanted) == 1 else "interleave"
    try:
        with deferred_signals():
            accepted, binding.threads = binding.bind_memory(policy, wanted)
        binding.policy, binding.nodes = accepted.policy, accepted.nodes
        if migrate:
            _move_pages(binding, wanted)
        binding.anonymous = _anonymous()
    except BaseException:
        binding.undo()
        raise
    return binding


def _move_pages(binding: MemoryBinding, nodes: tuple[int, ...]) -> None:
    """Move the pages of this process to these nodes, with a warning for those that stay."""
    try:
        binding.moved_bytes, stayed = _migrate(nodes)
    except BindingError as error:
        consequence = "its pages stay on their nodes"
        binding.messages.append(REFUSALS[error.code](subject="this process", consequence=consequence, reason=error))
        return
    if stayed > NEGLIGIBLE * (binding.moved_bytes + stayed):
        binding.messages.append(PAGES_NOT_MOVED(mebibytes=stayed / 2**20))


def _checked_nodes(nodes: Iterable[int]) -> tuple[int, ...]:
    numbers = tuple(nodes) if isinstance(nodes, (list, tuple, set, frozenset, range)) else (nodes,)
    if not all(isinstance(node, int) and not isinstance(node, bool) and node >= 0 for node in numbers):
        raise RequestError(f"nodes is {nodes!r}; it must be a list of node numbers")
    wanted = tuple(sorted(set(numbers)))
    reason = why_unusable(wanted)
    if reason is not None:
        raise RequestError(f"memory of node {format_id_list(wanted)} cannot be used: {reason}")
    return wanted


def _migrate(nodes: tuple[int, ...]) -> tuple[int, int]:
    """Move the pages of this process to these nodes; return how many bytes have moved, and how many have not.

    Raises:
        BindingError: the kernel refuses, or the nodes have no room.
    """
    before = _anonymous()
    elsewhere = sum(size for node, size in before.items() if node not in nodes)
    sources = [node for node in (before or allowed_memory_nodes()) if node not in nodes]
    if not sources:
        return 0, 0
    available = machine_memory().available
    room = sum(available.get(node, 0) for node in nodes)
    if room < elsewhere:
        raise NoRoomError(
            f"{elsewhere / 2**20:.0f} MiB of this process are elsewhere, but node {format_id_list(nodes)}"
            f" has {room / 2**20:.0f} MiB available, so no page is moved; stop what uses its memory, or name more nodes"
        )
    migrate_process_pages(sources, nodes)
    stayed = sum(size for node, size in _anonymous().items() if node not in nodes)
    return max(0, elsewhere - stayed), stayed


def _anonymous() -> dict[int, int]:
    """Return where the process's own pages are, {node: bytes}; {} where the kernel does not report it."""
    with suppress(OSError):
        return mapped_memory().anonymous
    return {}
