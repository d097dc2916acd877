"""The memory policy of the calling thread and its OpenMP team."""

from __future__ import annotations

import ctypes
import os
from threading import get_native_id
from typing import TYPE_CHECKING

from ompaffinity.bind.mempolicy import DEFAULT_POLICY, GrantedPolicy, restore_thread_policy, take_policy, thread_policy
from ompaffinity.errors import BindingError
from ompaffinity.openmp.detect import loaded_runtimes
from ompaffinity.openmp.team import in_each_thread

if TYPE_CHECKING:
    from ompaffinity.bind.mempolicy import ThreadPolicy


def take_team_policy(policy: str, nodes: tuple[int, ...]) -> tuple[GrantedPolicy, dict[int, ThreadPolicy]]:
    """Give the calling thread and its OpenMP team a policy; return what was granted and {thread: policy before}.

    A team is asked only where there can be one: a runtime is loaded, and the process has several threads.
    """
    before: dict[int, ThreadPolicy] = {}
    try:
        before[get_native_id()] = thread_policy()
    except BindingError as error:
        return GrantedPolicy("none", (), None if policy == "none" else error), {}
    granted = take_policy(policy, nodes)
    if policy == "none":
        restore_thread_policy(DEFAULT_POLICY)

    def follow() -> None:
        if get_native_id() not in before:
            before[get_native_id()] = thread_policy()
            if granted.policy == "none":
                restore_thread_policy(DEFAULT_POLICY)
            else:
                take_policy(granted.policy, granted.nodes)

    if granted.policy != "none" or policy == "none":
        for runtime in _team_runtimes():
            in_each_thread(runtime, follow)
    return granted, before


def give_back_team_policy(before: dict[int, ThreadPolicy]) -> None:
    """Give the calling thread and its OpenMP team back what `take_team_policy` returned."""
    left = dict(before)

    def restore() -> None:
        policy = left.pop(get_native_id(), None)
        if policy is not None:
            restore_thread_policy(policy)

    restore()
    if left:
        for runtime in _team_runtimes():
            # The team may have another size by now.
            in_each_thread(runtime, restore, threads=len(before))


def _team_runtimes() -> list[ctypes.CDLL]:
    try:
        if len(os.listdir("/proc/self/task")) < 2:
            return []
    except OSError:
        return []
    return [ctypes.CDLL(library.path) for library in loaded_runtimes()]
