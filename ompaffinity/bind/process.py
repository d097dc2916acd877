"""Bind a process that already runs: its threads from outside, its OpenMP team from inside, thread by thread.

The variables of OpenMP are read when the runtime is loaded, so in a running process they do nothing. A parallel
region, though, shows which threads are the calling thread's team.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter
from functools import partial
from threading import get_native_id
from typing import TYPE_CHECKING

from ompaffinity.bind.affinity import change_mask, thread_identity
from ompaffinity.bind.deferred_signals import deferred_signals
from ompaffinity.bind.memory_fallbacks import full_message, refusal_message
from ompaffinity.bind.team_policy import change_team_policy
from ompaffinity.bind.undo import Undo
from ompaffinity.errors import BindingError
from ompaffinity.ids import format_id_list
from ompaffinity.openmp.detect import loaded_runtimes
from ompaffinity.openmp.team import in_each_thread
from ompaffinity.proc import mask_of, thread_ids, thread_name
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Self

    from ompaffinity.bind.affinity import ThreadIdentity
    from ompaffinity.bind.mempolicy import AcceptedPolicy
    from ompaffinity.messages import Message
    from ompaffinity.placement.model import RankPlacement


class UnboundThread(NamedTuple):
    """A thread that could not be bound, or that had another mask already, and the reason."""

    thread_id: int
    name: str
    reason: str


class ProcessBinding:
    """What was bound of this process; `undo`, or leaving it as a context, takes that back.

    `team` are the kernel ids of the calling thread's OpenMP team, in the order of its threads; `bound` is
    {kernel id: CPUs}; `not_bound` are the threads that keep their mask; `messages` what was not accepted.
    """

    def __init__(self) -> None:
        self.team: tuple[int, ...] = ()
        self.bound: dict[int, tuple[int, ...]] = {}
        self.not_bound: list[UnboundThread] = []
        self.messages: list[Message] = []
        self._undo = Undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Restore masks, memory policies and the calling thread's team size; a second call does nothing.

        Only what is still ours changes: threads of this process that run since the binding and have the mask and
        policy that it gave them. A forked child has no such thread. Call it in the thread that made the binding,
        because a thread can restore no other one's memory policy. What cannot be restored is logged.
        """
        self._undo.run()

    def bind_thread(self, number: int, cpus: tuple[int, ...], *, must: bool) -> None:
        """Bind the thread with this kernel id, or list it in `not_bound`.

        Raises:
            BindingError: it `must` be bound, and the kernel refuses.
        """
        reason = change_mask(number, cpus, self._undo)
        if reason is None:
            self.bound[number] = cpus
        elif must:
            raise BindingError(f"thread {number} could not be bound to CPU {format_id_list(cpus)}: {reason}")
        else:
            self.leave_thread(number, reason)

    def leave_thread(self, number: int, reason: str) -> None:
        """List a thread that keeps its mask."""
        self.not_bound.append(UnboundThread(number, thread_name("self", number), reason))

    def bind_memory(self, policy: str, nodes: tuple[int, ...]) -> tuple[AcceptedPolicy, tuple[int, ...]]:
        """Give the calling thread and its team a memory policy; return what was accepted, and which threads have it."""
        accepted, threads = change_team_policy(policy, nodes, self._undo)
        found = (refusal_message("this process", policy, nodes, accepted), full_message("this process", accepted))
        self.messages += [message for message in found if message is not None]
        return accepted, threads

    def resize_team(self, runtime: ctypes.CDLL, threads: int) -> tuple[int, ...]:
        """Give the calling thread's team this size; return the kernel ids of its threads, in their order."""
        before, caller = runtime.omp_get_max_threads(), thread_identity(get_native_id())
        self._undo.add(partial(_restore_team_size, runtime, caller, before, threads))
        runtime.omp_set_num_threads(threads)
        return in_each_thread(runtime, threads=threads)


def _restore_team_size(runtime: ctypes.CDLL, caller: ThreadIdentity, before: int, taken: int) -> None:
    # The size is each thread's own (OpenMP's nthreads-var).
    if thread_identity(get_native_id()) == caller and runtime.omp_get_max_threads() == taken:
        runtime.omp_set_num_threads(before)


_current: ProcessBinding | None = None
_lock = threading.RLock()


def _forget_in_child() -> None:
    """A forked child has only the forking thread: nothing of it is bound by the parent's binding."""
    global _current, _lock
    _current, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def current_binding() -> ProcessBinding | None:
    """Return what `bind_current_process` did in this process and was not undone, None if there is nothing."""
    return _current


def bind_current_process(placement: RankPlacement, *, before_openmp: bool = False) -> ProcessBinding:
    """Bind this process as a worker that starts with this placement.

    The calling thread's OpenMP team, of every runtime that is loaded, gets the placement's size and places. A library
    with a thread count of its own (MKL in torch) needs ``torch.set_num_threads`` as well. The other threads that have
    the calling thread's mask get the placement's affinity; those with another mask keep it. Where no runtime is loaded
    yet, the calling thread gets the first thread's place; with `before_openmp` the whole affinity, for a runtime that
    is loaded later and reads its places from variables that are set already. The memory policy is set for the calling
    thread and its team, and moves no page (`init_cpu_memory_env` does); where it is refused, `messages` has a warning.

    Raises:
        BindingError: the calling thread or its team cannot be bound, or the process is bound in this way already;
            then nothing has changed.
    """
    global _current  # noqa: PLW0603
    if not placement.bound:
        return ProcessBinding()
    if not hasattr(os, "sched_getaffinity"):
        raise BindingError("this system cannot bind threads to CPUs")
    binding = ProcessBinding()
    # Registered first, so it runs last: until then the process is bound.
    binding._undo.add(partial(_forget, binding))
    try:
        with deferred_signals(), _lock:
            if _current is not None:
                raise BindingError("this process is bound already; call undo() of current_binding() first")
            inherited = _inherited_masks(placement)
            _bind_team(placement, binding, placement.affinity if before_openmp else placement.places[0])
            _bind_other_threads(placement, binding, inherited)
            if placement.memory_policy != "none" and placement.nodes:
                binding.bind_memory(placement.memory_policy, placement.nodes)
            _current = binding
    except BaseException:
        binding.undo()
        raise
    return binding


def _forget(binding: ProcessBinding) -> None:
    global _current  # noqa: PLW0603
    with _lock:
        if _current is binding:
            _current = None


def _bind_team(placement: RankPlacement, binding: ProcessBinding, alone: tuple[int, ...]) -> None:
    """Bind the calling thread's team of every runtime that is loaded, each thread to its place; else the caller."""
    libraries = loaded_runtimes()
    if not libraries:
        binding.team = (get_native_id(),)
        binding.bind_thread(get_native_id(), alone, must=True)
        return
    for library in libraries:
        team = binding.resize_team(ctypes.CDLL(library.path), len(placement.cpus))
        if len(team) < len(placement.cpus):
            raise BindingError(
                f"the OpenMP team of {library.path} has {len(team)} of {len(placement.cpus)} threads; look at"
                " OMP_THREAD_LIMIT and OMP_DYNAMIC"
            )
        binding.team = binding.team or team
        for place, number in zip(placement.places, team):
            binding.bind_thread(number, place, must=True)


def _inherited_masks(placement: RankPlacement) -> list[set[int]]:
    """Return the masks that a thread has by inheritance: the calling thread's.

    If that one is a place of the placement, a runtime has bound it by its variables, and the mask of most threads is
    the one that the process started with.
    """
    mine = os.sched_getaffinity(0)
    if mine not in [set(place) for place in placement.places]:
        return [mine]
    masks = [frozenset(mask) for number in thread_ids("self") if (mask := mask_of(number))]
    return [mine, set(Counter(masks).most_common(1)[0][0])]


def _bind_other_threads(placement: RankPlacement, binding: ProcessBinding, inherited: list[set[int]]) -> None:
    """Bind the threads whose mask is an inherited one; the team is bound already."""
    for number, mask in threads_but(binding.bound):
        if mask in inherited:
            binding.bind_thread(number, placement.affinity, must=False)
        elif mask != set(placement.affinity):
            binding.leave_thread(number, f"was bound to CPU {format_id_list(mask)} before")


def threads_but(known: Iterable[int]) -> Iterator[tuple[int, set[int]]]:
    """Yield the other threads of this process and their masks, until there are no new ones.

    A thread that the caller has not bound yet may start more meanwhile.
    """
    seen = set(known)
    while new := set(thread_ids("self")) - seen:
        seen |= new
        for number in sorted(new):
            mask = mask_of(number)
            if mask is not None:
                yield number, mask
