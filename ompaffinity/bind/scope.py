"""What a worker inherits: the environment of the process, the CPUs and the memory policy of the thread that starts it.

Each of these is taken until a context ends and then given back, whatever is raised inside. One thread at a time has the
turn to do so, because the environment belongs to the process.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ompaffinity.bind.affinity import change_mask
from ompaffinity.bind.deferred_signals import deferred_signals
from ompaffinity.bind.undo import undone_at_end
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.ids import format_id_list

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from ompaffinity.bind.undo import Undo

T = TypeVar("T")

WAIT_SECONDS = 0.1
"""How long the main thread waits for its turn before it looks whether a signal has arrived."""


class Context:
    """One entered context: its thread, and its asyncio task if there is one."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.task = _current_task()


# Any thread may release the lock: a generator that holds a context may be closed in another one.
_turn = threading.Lock()
_contexts: list[Context] = []
# Reentrant: the garbage collector may close such a generator while this thread holds the lock.
_contexts_lock = threading.RLock()


def _forget_in_child() -> None:
    """In a forked child only the forking thread exists, so no other thread would ever release the locks."""
    global _turn, _contexts_lock
    _turn, _contexts_lock = threading.Lock(), threading.RLock()
    _contexts.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def in_turn(take: Callable[[Undo], T]) -> AbstractContextManager[T]:
    """Return a context that waits until no other thread is inside one, calls `take`, and undoes it at its end.

    Contexts of one thread nest; coroutines of one thread must not interleave theirs.

    Raises (on entry):
        RequestError: another asyncio task of this thread is inside a context.
    """
    return undone_at_end(take, wait=_wait_for_turn)


def is_inside() -> bool:
    """Return whether the calling thread is inside a context."""
    return any(context.thread is threading.current_thread() for context in _contexts[-1:])


def _wait_for_turn(undo: Undo) -> None:
    context = Context()
    undo.add(partial(_leave, context))
    entered = False
    while not entered:
        with deferred_signals() as arrived:
            entered = _enter(context, arrived)


def _enter(context: Context, arrived: Collection[int]) -> bool:
    """Wait for the turn of a context, or until a signal arrives; return whether it is its turn."""
    with _contexts_lock:
        if is_inside():
            _check_task(_contexts[-1], context)
            _contexts.append(context)
            return True
    seconds = WAIT_SECONDS if threading.current_thread() is threading.main_thread() else -1
    while not _turn.acquire(timeout=seconds):
        if arrived:
            return False
    with _contexts_lock:
        _contexts.append(context)
    return True


def _check_task(outer: Context, inner: Context) -> None:
    # A context outside of any task is left after the loop that runs inside of it.
    if outer.task is not None and outer.task is not inner.task:
        raise RequestError(
            "another asyncio task of this thread is starting a worker; start workers one after another,"
            " because they share the environment and the thread's binding"
        )


def _leave(context: Context) -> None:
    with _contexts_lock:
        if context in _contexts:
            _contexts.remove(context)
            if not _contexts:
                _turn.release()


def _current_task() -> object:
    """Return the running asyncio task, None outside of one (and where asyncio is not even loaded)."""
    asyncio = sys.modules.get("asyncio")
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:
        return None


def take_affinity(cpus: tuple[int, ...], undo: Undo) -> None:
    """Give the calling thread these CPUs until `undo` runs.

    Raises:
        BindingError: the kernel refuses; nothing has changed.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise BindingError("this system cannot bind threads to CPUs; the worker runs unbound")
    reason = change_mask(threading.get_native_id(), cpus, undo)
    if reason is not None:
        raise BindingError(
            f"the kernel rejects CPU {format_id_list(cpus)} ({reason});"
            " look for a seccomp profile, or a CPU or cpuset that is gone since the plan"
        )
