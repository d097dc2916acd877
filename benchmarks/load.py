"""Load beside what is measured: bounded, for the benchmark itself starts and ends it."""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PERIOD_SECONDS = 0.02
"""A process that is busy for a part of the time wakes up so often."""


@contextmanager
def spinner(cpus: Iterable[int] | None = None, *, share: float = 1.0, when_idle: bool = False) -> Iterator[Any]:
    """Yield a process that is busy for this share of the time, on these CPUs, or on whichever the kernel puts it.

    With `when_idle` it runs only where nothing else wants to (SCHED_IDLE, sched(7)): the CPU never sleeps.
    """
    process = multiprocessing.get_context("spawn").Process(target=_spin, args=(cpus, share, when_idle), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join()


@contextmanager
def awake(cpus: Iterable[int]) -> Iterator[list[Any]]:
    """Keep each of these CPUs from sleeping; yields the processes that do so."""
    with ExitStack() as stack:
        yield [stack.enter_context(spinner([cpu], when_idle=True)) for cpu in cpus]


def _spin(cpus: Iterable[int] | None, share: float, when_idle: bool) -> None:
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    if when_idle:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        end = time.perf_counter() + share * PERIOD_SECONDS
        while time.perf_counter() < end:
            pass
        if share < 1:
            time.sleep((1 - share) * PERIOD_SECONDS)
