"""Bind a process that already runs: its threads from outside, its OpenMP team from inside, thread by thread.

The variables of OpenMP are read when the runtime is loaded, so in a running process they do nothing. A parallel
region, though, tells which threads are the calling thread's team.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from contextlib import suppress
from threading import get_native_id
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.bind.affinity import set_mask
from ompaffinity.bind.memory_fallbacks import full_message, refusal_message
from ompaffinity.bind.team_policy import give_back_team_policy, take_team_policy
from ompaffinity.errors import BindingError
from ompaffinity.ids import format_id_list
from ompaffinity.openmp.detect import loaded_runtimes
from ompaffinity.openmp.team import in_each_thread
from ompaffinity.proc import mask_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ompaffinity.bind.mempolicy import ThreadPolicy
    from ompaffinity.messages import Message
    from ompaffinity.placement.model import RankPlacement


class UnboundThread(NamedTuple):
    """A thread that could not be bound, or that somebody else had bound."""

    thread_id: int
    name: str
    reason: str


class ProcessBinding:
    """What `bind_current_process` did. Masks are CPU numbers, threads are the kernel's ids."""

    def __init__(self) -> None:
        self.team: tuple[int, ...] = ()
        self.bound: dict[int, tuple[int, ...]] = {}
        self.not_bound: list[UnboundThread] = []
        self.messages: list[Message] = []
        self._masks_before: dict[int, set[int]] = {}
        self.policies_before: dict[int, ThreadPolicy] = {}
        self._runtimes: list[tuple[ctypes.CDLL, int]] = []
        self._all_teams: set[int] = set()

    def undo(self) -> None:
        """Give each thread that still runs its mask back, the team its memory policy, the calling thread its team size.

        Call it in the thread that called `bind_current_process`; a second call does nothing.
        """
        for number, mask in self._masks_before.items():
            # A thread that has ended needs no mask.
            set_mask(number, mask)
        self._masks_before.clear()
        policies, self.policies_before = self.policies_before, {}
        try:
            give_back_team_policy(policies)
        finally:
            for runtime, size in self._runtimes:
                runtime.omp_set_num_threads(size)
            self._runtimes.clear()
            if self in _bindings:
                _bindings.remove(self)


_bindings: list[ProcessBinding] = []


def current_binding() -> ProcessBinding | None:
    """Return what `bind_current_process` did here and was not undone, None if there is nothing."""
    return _bindings[-1] if _bindings else None


def bind_current_process(placement: RankPlacement, *, before_openmp: bool = False) -> ProcessBinding:
    """Bind this process as a worker with this placement would have been born.

    The calling thread's OpenMP team, of every runtime that is loaded, gets the placement's size and places; a
    library that keeps a thread count of its own (MKL in torch) must be told, too: ``torch.set_num_threads``. Of
    the other threads those get the placement's affinity whose mask is that of the calling thread; somebody
    bound the rest, which is left alone. Where no runtime is loaded yet, the calling thread gets the first thread's
    place; with `before_openmp` the whole affinity, for a runtime that is loaded later and told its places by variables
    that are set already. The memory policy is set for the calling thread and its
    team, and moves no page (`init_cpu_memory_env` does); where it is refused, `warnings` says so.

    Raises:
        BindingError: the calling thread or its team cannot be bound, or the process is bound in this way already;
            then nothing has changed.
    """
    binding = ProcessBinding()
    if not placement.bound:
        return binding
    if _bindings:
        raise BindingError("this process is bound already; undo() that first, for it tells what was there before")
    if not hasattr(os, "sched_getaffinity"):
        raise BindingError("this system cannot bind threads to CPUs")
    inherited = _inherited_masks(placement)
    try:
        _bind_team(placement, binding, placement.affinity if before_openmp else placement.places[0])
        _bind_other_threads(placement, binding, inherited)
    except BaseException:
        binding.undo()
        raise
    _set_memory_policy(placement, binding)
    _bindings.append(binding)
    return binding


def _bind_team(placement: RankPlacement, binding: ProcessBinding, alone: tuple[int, ...]) -> None:
    """Bind the calling thread's team of every runtime that is loaded, each thread to its place; else the caller."""
    libraries = loaded_runtimes()
    if not libraries:
        binding.team = (get_native_id(),)
        binding._all_teams.add(get_native_id())
        bind_thread(get_native_id(), alone, binding, must=True)
        return
    for library in libraries:
        runtime = ctypes.CDLL(library.path)
        binding._runtimes.append((runtime, runtime.omp_get_max_threads()))
        runtime.omp_set_num_threads(len(placement.cpus))
        team = in_each_thread(runtime, threads=len(placement.cpus))
        if len(team) < len(placement.cpus):
            raise BindingError(
                f"the OpenMP team of {library.path} has {len(team)} of {len(placement.cpus)} threads; look at"
                " OMP_THREAD_LIMIT and OMP_DYNAMIC"
            )
        binding.team = binding.team or team
        binding._all_teams.update(team)
        for place, number in zip(placement.places, team):
            bind_thread(number, place, binding, must=True)


def _inherited_masks(placement: RankPlacement) -> list[set[int]]:
    """Return the masks that nobody chose for a thread: the calling thread's.

    If that one is a place of the placement, a runtime that heard its variables has bound it, and most threads' mask is
    what the process was born with.
    """
    mine = os.sched_getaffinity(0)
    if mine not in [set(place) for place in placement.places]:
        return [mine]
    masks = [frozenset(mask) for number in os.listdir("/proc/self/task") if (mask := mask_of(int(number)))]
    return [mine, set(Counter(masks).most_common(1)[0][0])]


def _bind_other_threads(placement: RankPlacement, binding: ProcessBinding, inherited: list[set[int]]) -> None:
    """Bind the threads that nobody has bound."""
    for number, mask in threads_but(binding._all_teams):
        if mask in inherited:
            bind_thread(number, placement.affinity, binding, must=False)
        elif mask != set(placement.affinity):
            bound = UnboundThread(number, thread_name(number), f"was bound to CPU {format_id_list(mask)} before")
            binding.not_bound.append(bound)


def threads_but(known: Iterable[int]) -> Iterator[tuple[int, set[int]]]:
    """Yield the other threads of this process and their masks, until there are no new ones.

    A thread that the caller has not bound yet may start more meanwhile.
    """
    seen = set(known)
    while new := set(map(int, os.listdir("/proc/self/task"))) - seen:
        seen |= new
        for number in sorted(new):
            mask = mask_of(number)
            if mask is not None:
                yield number, mask


def _set_memory_policy(placement: RankPlacement, binding: ProcessBinding) -> None:
    if placement.memory_policy == "none" or not placement.nodes:
        return
    granted, binding.policies_before = take_team_policy(placement.memory_policy, placement.nodes)
    refused = refusal_message("this process", placement.memory_policy, placement.nodes, granted)
    full = full_message("this process", granted)
    binding.messages += [message for message in (refused, full) if message is not None]


def bind_thread(number: int, cpus: tuple[int, ...], binding: ProcessBinding, *, must: bool) -> None:
    """Bind one thread, read back, and remember what was.

    Raises:
        BindingError: it is a thread that `must` be bound, and the kernel refuses.
    """
    # If the thread has ended meanwhile, setting its mask says so.
    with suppress(OSError):
        binding._masks_before[number] = os.sched_getaffinity(number)
    reason = set_mask(number, cpus)
    if reason is None:
        binding.bound[number] = cpus
    elif must:
        raise BindingError(f"thread {number} could not be bound to CPU {format_id_list(cpus)}: {reason}")
    else:
        binding.not_bound.append(UnboundThread(number, thread_name(number), reason))


def thread_name(number: int) -> str:
    """Return what a thread of this process is called, "" for one that has ended."""
    try:
        with open(f"/proc/self/task/{number}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
