"""What a worker inherits: the environment of the process, the CPUs and the memory policy of the thread that starts it.

Each of these is taken until a context ends and then given back, whatever is raised inside.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ompaffinity.bind.affinity import set_mask
from ompaffinity.bind.mempolicy import GrantedPolicy, restore_thread_policy, take_policy, thread_policy
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.openmp.variables import MANAGED_VARIABLES
from ompaffinity.placement.document import PLACEMENT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.placement.model import RankPlacement

logger = logging.getLogger("ompaffinity")

# The environment belongs to the process, so one lock serves every manager in it.
_environment_lock = threading.RLock()
_tasks_inside: list[object] = []
_thread_inside: list[int] = []


def _forget_other_threads() -> None:
    """In a forked child only the forking thread lives on: a lock that another one held would never be released."""
    global _environment_lock  # noqa: PLW0603
    _environment_lock = threading.RLock()
    _tasks_inside.clear()
    _thread_inside.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)

FAMILY_PREFIXES = ("OMP_", "GOMP_", "KMP_")
OTHER_NAMES = frozenset((*MANAGED_VARIABLES, PLACEMENT_VARIABLE))


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other thread is inside a context; coroutines of this thread must not interleave theirs.

    Raises:
        RequestError: another asyncio task of this thread is inside a context.
    """
    task = _current_task()
    with _environment_lock:
        # A context outside of any task is left after the loop that runs inside of it.
        if _tasks_inside and _tasks_inside[-1] is not None and _tasks_inside[-1] is not task:
            raise RequestError(
                "another asyncio task of this thread is starting a worker; start workers one after another,"
                " for they share the environment and the thread's binding"
            )
        _tasks_inside.append(task)
        _thread_inside.append(threading.get_ident())
        try:
            yield
        finally:
            if _tasks_inside:
                _tasks_inside.pop()
                _thread_inside.pop()


def is_inside() -> bool:
    """Return whether the calling thread is inside a context."""
    return _thread_inside[-1:] == [threading.get_ident()]


def _current_task() -> object:
    """Return the running asyncio task, None outside of one (and where asyncio is not even loaded)."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:
        return None


@contextmanager
def restored_environment() -> Iterator[dict[str, str]]:
    """Put back every variable of the OpenMP families and of ours, also what appears or changes inside; yields them."""
    before = {name: os.environ[name] for name in _names_of_ours()}
    try:
        yield before
    finally:
        for name in _names_of_ours():
            if name not in before:
                del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


def _names_of_ours() -> list[str]:
    return [name for name in os.environ if name.startswith(FAMILY_PREFIXES) or name in OTHER_NAMES]


def take_affinity(cpus: tuple[int, ...], stack: ExitStack) -> None:
    """Give the calling thread these CPUs until the stack unwinds."""
    if not hasattr(os, "sched_setaffinity"):
        raise BindingError("this system cannot bind threads to CPUs; the worker runs unbound")
    before = os.sched_getaffinity(0)
    # Registered first: a mask that was half taken must not stay either.
    stack.callback(_give_back_affinity, before)
    reason = set_mask(0, cpus)
    if reason is not None:
        raise BindingError(
            f"the kernel refused CPU {format_id_list(cpus)} ({reason});"
            " look for a seccomp profile, or a CPU or cpuset that is gone since the plan"
        )


def _give_back_affinity(before: set[int]) -> None:
    try:
        os.sched_setaffinity(0, before)
    except OSError as error:
        logger.warning("the calling thread could not get CPU %s back: %s", format_id_list(before), error.strerror)


def take_memory_policy(placement: RankPlacement, stack: ExitStack) -> GrantedPolicy:
    """Give the calling thread the memory policy of a worker until the stack unwinds, or the next best; returns it."""
    if placement.memory_policy == "none" or not placement.nodes:
        return GrantedPolicy("none", ())
    try:
        before = thread_policy()
    except BindingError as error:
        return GrantedPolicy("none", (), error)
    stack.callback(restore_thread_policy, before)
    return take_policy(placement.memory_policy, placement.nodes)
