"""The memory policy of the calling thread and its OpenMP team, set until it is undone."""

from __future__ import annotations

import ctypes
from functools import partial
from threading import get_native_id
from typing import TYPE_CHECKING

from ompaffinity.bind.affinity import ThreadIdentity, thread_identity
from ompaffinity.bind.mempolicy import DEFAULT_POLICY, AcceptedPolicy, restore_thread_policy, take_policy, thread_policy
from ompaffinity.errors import BindingError
from ompaffinity.ids import format_id_list
from ompaffinity.openmp.detect import loaded_runtimes
from ompaffinity.openmp.team import in_each_thread
from ompaffinity.proc import thread_ids
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from ompaffinity.bind.mempolicy import ThreadPolicy
    from ompaffinity.bind.undo import Undo


class PolicyChange(NamedTuple):
    """The policy that a thread had, and the one that it got."""

    before: ThreadPolicy
    taken: ThreadPolicy


def change_thread_policy(policy: str, nodes: tuple[int, ...], undo: Undo) -> AcceptedPolicy:
    """Give the calling thread a policy until `undo` runs; return what was accepted. ``"none"`` changes nothing."""
    if policy == "none" or not nodes:
        return AcceptedPolicy("none", ())
    changes: dict[ThreadIdentity, PolicyChange] = {}
    undo.add(partial(_restore, changes))
    return _change(policy, nodes, changes)


def change_team_policy(policy: str, nodes: tuple[int, ...], undo: Undo) -> tuple[AcceptedPolicy, tuple[int, ...]]:
    """Give the calling thread and its OpenMP team a policy until `undo` runs.

    ``"none"`` is the kernel's default policy. Returns what was accepted, and the kernel ids of its threads.
    A team is looked for only where there can be one: a runtime is loaded, and the process has several threads.
    """
    changes: dict[ThreadIdentity, PolicyChange] = {}
    undo.add(partial(_restore, changes))
    accepted = _change(policy, nodes, changes)
    if not changes:
        return accepted, ()

    def follow() -> None:
        if thread_identity(get_native_id()) not in changes:
            _change(accepted.policy, accepted.nodes, changes)

    for runtime in _team_runtimes():
        in_each_thread(runtime, follow)
    return accepted, tuple(sorted(thread.number for thread in changes))


def _change(policy: str, nodes: tuple[int, ...], changes: dict[ThreadIdentity, PolicyChange]) -> AcceptedPolicy:
    """Give the calling thread a policy, and add what has changed to `changes`."""
    try:
        before = thread_policy()
    except BindingError as error:
        return AcceptedPolicy("none", (), None if policy == "none" else error)
    accepted = take_policy(policy, nodes)
    if policy == "none":
        restore_thread_policy(DEFAULT_POLICY)
    if accepted.policy != "none" or policy == "none":
        changes[thread_identity(get_native_id())] = PolicyChange(before, thread_policy())
    return accepted


def _restore(changes: dict[ThreadIdentity, PolicyChange]) -> str | None:
    """Give the calling thread and its team their policies back; return why a thread that still runs keeps ours."""
    left, failures = dict(changes), []

    def restore() -> None:
        change = left.pop(thread_identity(get_native_id()), None)
        try:
            if change is not None and thread_policy() == change.taken:
                restore_thread_policy(change.before)
        except BindingError as error:
            failures.append(str(error))

    restore()
    if left and len(left) < len(changes):
        # This thread leads the team, which may have another size by now.
        for runtime in _team_runtimes():
            in_each_thread(runtime, restore, threads=len(changes))
    running = [thread.number for thread in left if thread.runs]
    if running:
        failures.append(f"only thread {format_id_list(running)} itself can restore its memory policy; undo it there")
    return "; ".join(failures) or None


def _team_runtimes() -> list[ctypes.CDLL]:
    try:
        if len(thread_ids("self")) < 2:
            return []
    except OSError:
        return []
    return [ctypes.CDLL(library.path) for library in loaded_runtimes()]
