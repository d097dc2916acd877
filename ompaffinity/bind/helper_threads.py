"""Inside a worker: threads that are not OpenMP's belong on the helper CPUs, not on the first thread's CPU."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ompaffinity.bind.affinity import change_mask, set_mask
from ompaffinity.bind.undo import undone_at_end
from ompaffinity.bind.worker_placement import current_placement
from ompaffinity.errors import BindingError
from ompaffinity.ids import format_id_list

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ompaffinity.bind.undo import Undo
    from ompaffinity.placement.model import RankPlacement


def helper_threads(placement: RankPlacement | None = None) -> AbstractContextManager[tuple[int, ...]]:
    """Give threads and processes that are started inside this context the rank's helper CPUs; yields these.

    A rank without helper CPUs gives them its whole affinity. `placement` is by default the one that this
    process was started with. Without one, or with one that binds nothing, nothing is done. The calling
    thread is bound, because what it starts inherits its mask, and gets its own mask back at the end, unless it was
    bound in another way inside.

    Raises:
        RequestError: OMPAFFINITY_PLACEMENT does not hold a placement.
        BindingError: the kernel refuses to bind the thread, or to give its mask back; the latter is only logged
            where an exception is on its way already.
    """

    def take(undo: Undo) -> tuple[int, ...]:
        cpus = _helper_cpus(placement)
        if cpus:
            _check(change_mask(threading.get_native_id(), cpus, undo), "the calling thread", cpus)
        return cpus

    return undone_at_end(take, strict=True)


def move_to_helper_cpus(
    thread: threading.Thread | int | None = None, placement: RankPlacement | None = None
) -> tuple[int, ...]:
    """Give a running thread the helper CPUs and return these.

    It is a Thread, or a thread id of the kernel; None is the calling one.

    Raises:
        RequestError: OMPAFFINITY_PLACEMENT does not hold a placement.
        BindingError: the thread is not running, or the kernel refuses.
    """
    cpus = _helper_cpus(placement)
    number = thread.native_id if isinstance(thread, threading.Thread) else thread or 0
    if number is None:
        raise BindingError(f"the thread {getattr(thread, 'name', '')} is not running yet; start it first")
    if cpus:
        _check(set_mask(number, cpus), f"thread {number}" if number else "the calling thread", cpus)
    return cpus


def _helper_cpus(placement: RankPlacement | None) -> tuple[int, ...]:
    placement = current_placement() if placement is None else placement
    if placement is None or not placement.bound:
        return ()
    return placement.helper_cpus or placement.affinity


def _check(reason: str | None, whom: str, cpus: tuple[int, ...]) -> None:
    """Raise a BindingError if there is a reason why a thread could not be bound."""
    if reason is not None:
        raise BindingError(f"{whom} could not be bound to CPU {format_id_list(cpus)}: {reason}")
