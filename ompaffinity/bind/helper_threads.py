"""Inside a worker: threads that are not OpenMP's belong on the helper CPUs, not on the first thread's CPU."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.bind.affinity import set_mask
from ompaffinity.bind.current import current_placement
from ompaffinity.errors import BindingError
from ompaffinity.ids import format_id_list

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.placement.model import RankPlacement


@contextmanager
def helper_threads(placement: RankPlacement | None = None) -> Iterator[tuple[int, ...]]:
    """Give threads and processes that are started inside this context the rank's helper CPUs; yields these.

    A rank without helper CPUs gives them its whole affinity. `placement` is by default the one that this
    process was started with. Without one, or with one that binds nothing, nothing is done. The calling
    thread, which is bound so that what it starts inherits it, gets its own mask back.

    Raises:
        RequestError: OMPAFFINITY_PLACEMENT does not hold a placement.
        BindingError: the kernel refuses.
    """
    cpus = _helper_cpus(placement)
    if not cpus:
        yield ()
        return
    before = os.sched_getaffinity(0)
    _bind(0, cpus)
    try:
        yield cpus
    finally:
        _bind(0, tuple(sorted(before)))


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
        _bind(number, cpus)
    return cpus


def _helper_cpus(placement: RankPlacement | None) -> tuple[int, ...]:
    placement = current_placement() if placement is None else placement
    if placement is None or not placement.bound:
        return ()
    return placement.helper_cpus or placement.affinity


def _bind(number: int, cpus: tuple[int, ...]) -> None:
    """Bind a thread (0: the calling one) and read back.

    Raises:
        BindingError: the kernel refuses, or gives something else; then the thread keeps what it had.
    """
    reason = set_mask(number, cpus)
    if reason is not None:
        who = f"thread {number}" if number else "the calling thread"
        raise BindingError(f"{who} could not be bound to CPU {format_id_list(cpus)}: {reason}")
